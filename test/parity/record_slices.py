"""Shapes of slices: what fastsafetensors' TensorFrame says, and what numpy gives. 400 slices, the same in each run.

    python test/parity/record_slices.py > fixtures/parity/slices.json

What to install: see record.py, and numpy. test/parity-slices.test.ts compares what this package says.
"""

import json
import random

import numpy
from fastsafetensors import TensorFrame


def given(ranges):
    return tuple(r if isinstance(r, int) else slice(*r) for r in ranges)


def shape_of(make):
    try:
        return list(make().shape)
    except Exception:
        return "refused"


def slices():
    """A range is a number, or [start, stop, step] with null for what is left out."""
    draw = random.Random(5)
    for _ in range(400):
        shape = [draw.randint(0, 6) if draw.random() < 0.1 else draw.randint(1, 6) for _ in range(draw.randint(1, 3))]
        bound = lambda: draw.choice([None, draw.randint(-8, 8), draw.randint(-8, 8)])
        step = lambda: draw.choice([None, 1, 1, 2, 3, -1, -2, 0 if draw.random() < 0.05 else 1])
        one = lambda: draw.randint(-7, 7) if draw.random() < 0.3 else [bound(), bound(), step()]
        yield shape, [one() for _ in range(draw.randint(1, len(shape)))]


print("[")
rows = []
for shape, ranges in slices():
    size = int(numpy.prod(shape))
    frame = TensorFrame.from_buffer({"dtype": "U8", "shape": shape, "data_offsets": [0, size]})
    there = shape_of(lambda: frame[given(ranges)])
    rows.append([shape, ranges, there, shape_of(lambda: numpy.zeros(shape, numpy.uint8)[given(ranges)])])
print(",\n".join(json.dumps(row) for row in rows))
print("]")
