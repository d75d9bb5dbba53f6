"""`host_peers.py loader`: for each line of stdin, the JSON of a list of files, loads them into host memory with a
loader for Python, touches a byte in each 4 KiB of each tensor, and answers with the JSON of {seconds, cpuSeconds,
peakBytes, bytes}: processor time of the whole process, and how far its memory rose above what it was before. What a
loader needs is imported before the first line."""
import json
import resource
import sys
import time


def by_file(load_file):
    def load(files):
        tensors = {}
        for file in files:
            tensors.update(load_file(file))
        return tensors, None

    return load


def safetensors_mapped():
    from safetensors.torch import load_file

    return by_file(load_file)


def safetensors_pread():
    from functools import partial

    from safetensors.torch import load_file

    return by_file(partial(load_file, backend="pread"))


def safetensors_numpy():
    from safetensors.numpy import load_file

    return by_file(load_file)


def fastsafetensors():
    import torch
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    del torch

    def load(files):
        loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
        loader.add_filenames({0: files})
        buffers = loader.copy_files_to_device()
        tensors = {name: buffers.get_tensor(name) for name in loader.get_keys()}

        def end():
            buffers.close()
            loader.close()

        return tensors, end

    return load


def runai():
    from runai_model_streamer import SafetensorsStreamer

    def load(files):
        streamer = SafetensorsStreamer()
        streamer.__enter__()
        streamer.stream_files(files)
        tensors = dict(streamer.get_tensors())
        return tensors, lambda: streamer.__exit__(None, None, None)

    return load


def touched(tensor):
    """How many bytes a tensor has, each page of which was read."""
    import numpy

    array = tensor if isinstance(tensor, numpy.ndarray) else tensor.numpy()
    flat = array.reshape(-1).view(numpy.uint8)
    if flat[::4096].sum() == 0:
        raise SystemExit("the tensors hold other numbers than were written")
    return flat.nbytes


def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def main():
    load = globals()[sys.argv[1]]()
    print("ready", flush=True)
    for line in sys.stdin:
        files = json.loads(line)
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before, usage = status("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        tensors, end = load(files)
        count = sum(touched(tensor) for tensor in tensors.values())
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        peak = status("VmHWM") - before
        del tensors
        if end is not None:
            end()
        cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        print(json.dumps({"seconds": seconds, "cpuSeconds": cpu, "peakBytes": peak, "bytes": count}), flush=True)


main()
