"""What fastsafetensors makes of each configuration: asked of the package itself.

    pip install fastsafetensors==0.5.0 fastsafetensor-3fs-reader==0.3.3 torch tqdm
    python test/parity/record.py test/parity/configurations.json > fixtures/parity/configurations.json

On a machine without GPUs. test/long/parity.test.ts compares a new run with what was recorded,
test/configuration-parity.test.ts what was recorded with this package.
"""

import json
import os
import sys
import tempfile
import warnings

os.environ["FASTSAFETENSORS_BACKEND"] = "mock"  # the 3FS reader over ordinary files
os.environ.pop("FASTSAFETENSORS_CONFIG", None)

import fastsafetensors
import torch

COPIERS = {"GdsFileCopier": "gds", "NoGdsFileCopier": "nogds", "UnifiedMemCopier": "unified"}
COPIERS["ThreeFSFileCopier"] = "3fs"
MODEL = [
    ("a.safetensors", [("x", "F32", [4], 16), ("y", "U8", [3], 3)]),
    ("b.safetensors", [("z", "I64", [2, 2], 32)]),
]


def write_model(folder):
    """Bytes count up from 1 over all tensors, modulo 100: no NaN, and no bytes that are the same twice in a row."""
    paths, value = [], 0
    for name, tensors in MODEL:
        header, data = {}, b""
        for tensor, dtype, shape, size in tensors:
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
            data += bytes((value + i) % 100 + 1 for i in range(size))
            value += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        paths.append(os.path.join(folder, name))
        with open(paths[-1], "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + data)
    return paths


def answer(config, files):
    if config is not None:
        with open("fastsafetensors.json", "w") as file:
            json.dump(config, file)
    try:
        auto = fastsafetensors.AutoLoader(None, files, device="cpu")
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    loader, pipeline = auto._loader, auto._pipeline
    section = type(loader).process_extension_config(
        auto.config.get_extension_config(auto.config.loader), hf_weights_files=files
    )
    made = {
        "queueSize": pipeline.queue_size,
        "progress": pipeline.use_tqdm_on_load,
        "maxBatchBytes": pipeline.max_batch_bytes,
        "debugLog": auto.config.debug_log,
        "setNuma": auto.config.set_numa,
        "copier": COPIERS[loader.copier_class.__name__],
    }
    names = {"bbuf_size_kb": "bounceBufferSize", "max_threads": "maxThreads", "mount_point": "mountPoint"}
    names.update({"entries": "entries", "io_depth": "ioDepth", "buffer_size": "bufferSize"})
    for key, name in names.items():
        if key in section:
            made[name] = section[key] * (1024 if key == "bbuf_size_kb" else 1)
    try:
        made["tensors"] = {
            name: bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()).hex()
            for name, tensor in auto.iterate_weights()
        }
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    finally:
        auto.close()
    return made


def main(questions):
    answers = {}
    for name, config in json.load(open(questions)).items():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            files = write_model(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = json.dumps(answer(config, files))
            answers[name] = json.loads(text.replace(folder, "FOLDER"))
            os.chdir("/")
    recorded = {"fastsafetensors": fastsafetensors.__version__, "answers": answers}
    json.dump(recorded, sys.stdout, indent=2)
    print()


main(os.path.abspath(sys.argv[1]))
