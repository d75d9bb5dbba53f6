"""What fastsafetensors makes of the headers of fixtures/malformed.

    python test/parity/record_headers.py > fixtures/parity/headers.json

What to install: see record.py. test/parity-headers.test.ts compares what this package makes of them.
"""

import json
import os
import sys

from fastsafetensors import SafeTensorsMetadata
from fastsafetensors.frameworks import get_framework_op

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../fixtures/malformed")


def answer(path, framework):
    try:
        metadata = SafeTensorsMetadata.from_file(path, framework)
    except Exception as error:
        return {"refused": type(error).__name__}
    tensors = sorted(
        [name, frame.dtype.value, list(frame.shape), list(frame.data_offsets)]
        for name, frame in metadata.tensors.items()
    )
    return {"metadata": metadata.metadata, "tensors": tensors}


framework = get_framework_op("pytorch")
names = sorted(name for name in os.listdir(FOLDER) if name.endswith(".safetensors"))
json.dump({name: answer(os.path.join(FOLDER, name), framework) for name in names}, sys.stdout, indent=1)
print()
