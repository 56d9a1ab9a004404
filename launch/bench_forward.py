"""Measures the forward pass against transformers on torch, side by side on this machine's CPU.

python -m launch.bench_forward [--base=FOLDER] [--rows=8] [--length=256] [--repeats=5] [--out=FILE.json]
"""

import json
import tempfile

from absl import flags

from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import run
from .path_flags import define_path

BASE = define_path("base", "Hugging Face folder; default: 110 million random parameters.")
ROWS = flags.DEFINE_integer("rows", 8, "Rows in the batch.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 256, "Positions per row.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Number type of weights and compute.")
OUT = define_path("out", "JSON file to write.", output="file")


def main(_: object) -> None:
    """Prints a line and the JSON object."""
    from mossa_jax.benchmarks.forward import compare_forward
    from mossa_jax.files.write import write_json
    from mossa_jax.llama.published import write_random

    with tempfile.TemporaryDirectory() as folder:
        base = BASE.value
        if base is None:
            base = f"{folder}/llama-110m"
            write_random(base, "llama-110m", "float32")
        try:
            record = compare_forward(base, ROWS.value, LENGTH.value, REPEATS.value, DTYPE.value)
        except ImportError as error:
            raise Refusal(BAD_CONFIG, f"the comparison needs torch ({error}); pip install torch") from None
    if OUT.value:
        write_json(OUT.value, record)
    ours, theirs = record["ours_tokens_per_s"], record["transformers_tokens_per_s"]
    print(
        f"forward, {record['parameters'] / 1e6:.0f} M parameters, {DTYPE.value}, {ROWS.value} x {LENGTH.value}: "
        f"{ours:,.0f} tokens/s against {theirs:,.0f} of transformers, {record['ratio']:.2f} times as fast "
        f"(median of {REPEATS.value}; {record['ratio_lowest']:.2f} to {record['ratio_highest']:.2f}); "
        f"logits differ by {record['logits_difference']:.1e}"
    )
    print(json.dumps(record))


if __name__ == "__main__":
    run(main)
