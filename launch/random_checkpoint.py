"""Writes a checkpoint of random numbers in the shape of a published model, to measure loading and speed with.

python -m launch.random_checkpoint --shape=llama2-7b --dtype=bfloat16 --out=DIR
"""

import ml_dtypes
import numpy as np
from absl import flags

from launch.main import run
from mossa_jax.llama.architecture import architecture_from_config
from mossa_jax.llama.checkpoint import Writer
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.llama.weights import stored_shapes
from mossa_jax.progress import Progress
from mossa_jax.rundir import new_folder, write_json

SHAPE = flags.DEFINE_enum("shape", "llama2-7b", sorted(PUBLISHED), "Which model's shape.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Number type of the file.")
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
SHARD_GB = flags.DEFINE_float("shard_gb", 2.0, "Largest size of a file, in GB.")
SEED = flags.DEFINE_integer("seed", 0, "Of the random numbers.")


def main() -> None:
    """Normal numbers of standard deviation 0.02; norm weights one."""
    config = PUBLISHED[SHAPE.value]
    dtype = np.float32 if DTYPE.value == "float32" else ml_dtypes.bfloat16
    rng = np.random.default_rng(SEED.value)
    shapes = stored_shapes(architecture_from_config(config, SHAPE.value))
    progress = Progress(f"random {SHAPE.value}", len(shapes), 0)
    with new_folder(OUT.value) as folder:
        files = Writer(folder, int(SHARD_GB.value * 1e9))
        for number, (name, shape) in enumerate(shapes.items(), 1):
            draw = np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape, np.float32) * np.float32(0.02)
            files.add(name, draw.astype(dtype))
            if number % 50 == 0 or number == len(shapes):
                progress.line(number, name)
        files.close()
        write_json(folder / "config.json", config | {"torch_dtype": DTYPE.value})


if __name__ == "__main__":
    run(main)
