"""What daily uses of fastsafetensors give: the Python of each use on docs/from-fastsafetensors.md.

    python test/parity/record_uses.py > fixtures/parity/uses.json

What to install: see record.py. test/daily-uses.test.ts compares what the page's TypeScript gives.
"""

import json
import os
import sys
import tempfile

from fastsafetensors import AutoLoader, SafeTensorsFileLoader, SingleGroup, fastsafe_open

FILES = {
    "a.safetensors": {"a.w": ("F32", [4, 2], 32), "a.b": ("F32", [4], 16)},
    "b.safetensors": {"b.w": ("F32", [4, 2], 32), "b.b": ("U8", [3], 3)},
}
DTYPES = {"torch.float32": "F32", "torch.uint8": "U8"}


def write(name, tensors):
    header, data = {"__metadata__": {"format": "pt", "file": name}}, b""
    for tensor, (dtype, shape, size) in tensors.items():
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes((len(data) + i) % 100 + 1 for i in range(size))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(name, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)


def batches(files, pg):
    weights = {}
    for file in files:
        loader = SafeTensorsFileLoader(pg, "cpu", nogds=True)
        loader.add_filenames({0: [file]})
        bufs = loader.copy_files_to_device()
        for name in loader.get_keys():
            weights[name] = bufs.get_tensor(name)
        bufs.close()
        loader.close()
    return weights


def own_files(files, pg):
    loader = SafeTensorsFileLoader(pg, "cpu", nogds=True)
    loader.add_filenames({pg.rank(): files})
    bufs = loader.copy_files_to_device()
    return {name: bufs.get_tensor(name) for name in loader.get_keys()}


def sharded(files, pg):
    loader = SafeTensorsFileLoader(pg, "cpu", nogds=True)
    loader.add_filenames({0: files})
    bufs = loader.copy_files_to_device()
    weights = {"row": bufs.get_sharded("a.w", 0), "all": bufs.get_sharded("a.b", -1)}
    weights["pushed"] = bufs.push_tensor("b.b", 0)
    weights["rows"] = bufs.get_multi_cols(["a.w", "b.w"], 0)
    weights["columns"] = bufs.get_multi_cols(["a.w", "b.w"], 1)
    return weights


def lazily(files, pg):
    with fastsafe_open(files, nogds=True) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


def metadata(files, pg):
    loader = SafeTensorsFileLoader(pg, "cpu", nogds=True)
    loader.add_filenames({0: files})
    return {path: loader.meta[path][0].metadata for path in files}


def configured(files, pg):
    with open("config.json", "w") as file:
        json.dump({"loader": "base", "base": {"copier_type": "nogds"}, "parallel": {"use_pipeline": True}}, file)
    os.environ["FASTSAFETENSORS_CONFIG"] = "config.json"
    loader = AutoLoader(pg, files)
    loader._loader.set_tensor_filter(lambda name: name.endswith(".w"))
    return dict(loader.iterate_weights())


def plain(value):
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if hasattr(value, "get_raw"):
        value = value.get_raw()
    if hasattr(value, "numpy"):
        array = value.contiguous().cpu()
        return [DTYPES[str(array.dtype)], list(array.shape), array.numpy().tobytes().hex()]
    return value


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, tensors in FILES.items():
            write(name, tensors)
        uses = [batches, own_files, sharded, lazily, metadata, configured]
        answers = {use.__name__: plain(use(list(FILES), SingleGroup())) for use in uses}
        os.chdir("/")
    json.dump(answers, sys.stdout, indent=1)
    print()


main()
