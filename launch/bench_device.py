"""Checks every program on this GPU or TPU against float64, then measures it, within minutes and without a network.

python -m launch.bench_device [--out=FILE.json] [--minutes=9] [--shape=llama2-7b] [--parts=checks,forward,tuning]

Weights are random and drawn on the device. torch, transformers and peft take part if they are installed. On a CPU, the
shape is `tiny`. The exit code is 1 if a check or a measurement fails, after all others were done and written.
"""

import dataclasses
import json
import os

from absl import flags

from .flags import require_choice, run
from .path_flags import define_path

_PARTS = "checks,torch,forward,tuning,states,overhead,similarity,decoding"

SHAPE = flags.DEFINE_string(
    "shape", None, "Shape of the model: llama2-7b (the default), llama2-13b, llama3-8b, llama-110m, or tiny for a CPU."
)
MINUTES = flags.DEFINE_float("minutes", 9, "Minutes after which nothing new begins.", lower_bound=0)
PARTS = flags.DEFINE_list("parts", _PARTS, f"Any of {_PARTS.replace(',', ', ')}.")
OUT = define_path("out", "JSON file, written after every measurement; otherwise printed at the end.", output="file")
ROWS = flags.DEFINE_integer("rows", None, "Rows of a forward pass and of one adapter's step; default 8.", lower_bound=1)
ROW_LENGTH = flags.DEFINE_integer("row_length", None, "Positions of a row; default 1,024.", lower_bound=1)
PROMPTS = flags.DEFINE_integer("prompts", None, "Prompts of passes with states; default 256.", lower_bound=1)
KEPT = flags.DEFINE_integer("kept", None, "Prompts of the CKA that is measured alone; default 10,240.", lower_bound=4)
REPEATS = flags.DEFINE_integer("repeats", None, "Timed runs of each; default 5.", lower_bound=1)

# torch, in its own process, needs the memory that JAX would otherwise take when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")


def main(_: object) -> None:
    """Prints progress and the table, and writes or prints the record."""
    import jax

    from mossa_jax.benchmarks import device
    from mossa_jax.benchmarks.device_inputs import SHAPES, TINY, TINY_SIZES, Sizes

    require_choice(SHAPE, sorted(SHAPES))
    shape = SHAPE.value or (TINY if jax.default_backend() == "cpu" else "llama2-7b")
    overrides = {flag.name: flag.value for flag in (ROWS, ROW_LENGTH, PROMPTS, KEPT, REPEATS) if flag.value is not None}
    sizes = dataclasses.replace(TINY_SIZES if shape == TINY else Sizes(), **overrides)
    plan = device.Plan(shape, sizes, MINUTES.value, tuple(PARTS.value), OUT.value)
    record = device.measure(plan, lambda text: print(text, flush=True))
    print(f"\n{device.table(record)}", flush=True)
    if not OUT.value:
        print(json.dumps(record))
    device.require_success(record)


if __name__ == "__main__":
    run(main)
