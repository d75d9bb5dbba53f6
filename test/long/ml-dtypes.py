# What ml_dtypes and NumPy make of every file NAME.bin of a folder, NAME a dtype of safetensors: prints, as JSON, the
# versions and for each pair of dtypes the SHA-256 of the converted elements, each NaN as the quiet one without a
# payload, with its sign.
import hashlib
import json
import sys

import ml_dtypes
import numpy

TYPES = {
    "F64": numpy.float64,
    "F32": numpy.float32,
    "F16": numpy.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
QUIET = {"F64": 0x7FF8 << 48, "F32": 0x7FC0 << 16, "F16": 0x7E00, "BF16": 0x7FC0, "F8_E5M2": 0x7E}

pairs = {}
with numpy.errstate(all="ignore"):
    for source, kind in TYPES.items():
        values = numpy.fromfile(f"{sys.argv[1]}/{source}.bin", dtype=kind)
        for target, target_kind in TYPES.items():
            if source == target:
                continue
            converted = values.astype(target_kind)
            bits = converted.view(f"u{converted.itemsize}").copy()
            if target in QUIET:
                sign = bits & bits.dtype.type(1 << (8 * converted.itemsize - 1))
                bits = numpy.where(numpy.isnan(converted), sign | bits.dtype.type(QUIET[target]), bits)
            pairs[f"{source} {target}"] = hashlib.sha256(bits.tobytes()).hexdigest()
json.dump({"ml_dtypes": ml_dtypes.__version__, "numpy": numpy.__version__, "pairs": pairs}, sys.stdout, indent=2)
