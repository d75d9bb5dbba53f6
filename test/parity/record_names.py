"""The public names of fastsafetensors and its 3FS reader: asked of the packages themselves.

    python test/parity/record_names.py > fixtures/parity/names.json

What to install: see record.py. test/python-names.test.ts looks for each in docs/from-fastsafetensors.md.
"""

import inspect
import json
import os
import sys

os.environ["FASTSAFETENSORS_BACKEND"] = "mock"

import fastsafetensor_3fs_reader
import fastsafetensors
from fastsafetensors import copier, threefs_loader

PUBLIC = {
    name: value
    for name, value in vars(fastsafetensors).items()
    if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("fastsafetensors")
}
PUBLIC.update({name: getattr(threefs_loader, name) for name in ["ThreeFSLoader", "ParallelThreeFSLoader"]})
PUBLIC["CopierInterface"] = copier.base.CopierInterface
for name in ["register_copier_constructor", "create_copier_constructor", "get_copier_class", "copier_class_of"]:
    PUBLIC[name] = getattr(copier, name)
READER = {name: getattr(fastsafetensor_3fs_reader, name) for name in fastsafetensor_3fs_reader.__all__}


def parameters(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return [p.name for p in found if p.name not in ("self", "cls") and p.kind not in kinds]


def members(value):
    if not inspect.isclass(value):
        return {"parameters": parameters(value)}
    names = [name for name, _ in inspect.getmembers(value) if not name.startswith("_")]
    names += [name for name in getattr(value, "__annotations__", {}) if not name.startswith("_")]
    names = [name for name in dict.fromkeys(names) if name not in dir(Exception)]
    given = parameters(value.__init__) if "__init__" in dir(value) and value.__init__ is not object.__init__ else []
    methods = [getattr(value, name, None) for name in names]
    given += [p for method in methods if inspect.isroutine(method) for p in parameters(method)]
    return {"members": sorted(names), "parameters": sorted(set(given))}


def described(names):
    return {name: members(value) for name, value in sorted(names.items())}


json.dump({"fastsafetensors": described(PUBLIC), "fastsafetensor_3fs_reader": described(READER)}, sys.stdout, indent=1)
print()
