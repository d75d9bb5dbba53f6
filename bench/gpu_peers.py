"""`gpu_peers.py loader runs file...`: loads the files onto cuda:0 with a loader for Python, so that every tensor is in
GPU memory of its own or of the loader's and can be used, and prints the seconds of each run as JSON. The first run is
cold: it includes what a process makes once, but not the import and the CUDA context."""
import json
import sys
import time

import torch


def safetensors(files):
    from safetensors.torch import load_file

    tensors = {}
    for file in files:
        tensors.update(load_file(file, device="cuda:0"))
    return tensors, None


def safetensors_prefetch(files):
    from contextlib import ExitStack

    import safetensors

    if not hasattr(safetensors.safe_open, "prefetch"):
        raise SystemExit(f"safetensors {safetensors.__version__} has no prefetch: 0.9.0rc1 has")
    tensors = {}
    with ExitStack() as opened:
        handles = [opened.enter_context(safetensors.safe_open(file, framework="pt")) for file in files]
        # All files at a time; tensors stay valid when their loader has ended.
        for loader in [opened.enter_context(handle.prefetch(device="cuda:0")) for handle in handles]:
            tensors.update(loader)
    return tensors, None


def fastsafetensors(files):
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), "cuda:0", nogds=True)
    loader.add_filenames({0: files})
    buffers = loader.copy_files_to_device()
    tensors = {name: buffers.get_tensor(name) for name in loader.get_keys()}

    def end():
        buffers.close()
        loader.close()

    return tensors, end


def fastsafetensors_parallel(files):
    from fastsafetensors import ParallelLoader, SingleGroup

    loader = ParallelLoader(SingleGroup(), files, device="cuda:0", nogds=True, use_tqdm_on_load=False)
    tensors = dict(loader.iterate_weights())
    return tensors, loader.close


def instanttensor(files):
    from instanttensor import safe_open

    with safe_open(files, framework="pt", device=0) as opened:
        return dict(opened.tensors()), None


def runai(files):
    from runai_model_streamer import SafetensorsStreamer

    tensors = {}
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files)
        for name, tensor in streamer.get_tensors():
            tensors[name] = tensor.to("cuda:0")
    return tensors, None


def main():
    if not torch.cuda.is_available():
        raise SystemExit("this torch sees no CUDA device")
    load = globals()[sys.argv[1]]
    files = sys.argv[3:]
    torch.zeros(1, device="cuda:0")
    torch.cuda.synchronize()
    seconds, count = [], 0
    for _ in range(int(sys.argv[2])):
        start = time.perf_counter()
        tensors, end = load(files)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        count = len(tensors)
        del tensors
        if end is not None:
            end()
        torch.cuda.synchronize()
    print(json.dumps({"seconds": seconds, "tensors": count}))


main()
