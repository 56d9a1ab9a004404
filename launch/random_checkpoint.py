"""Writes a checkpoint of random numbers in the shape of a published model, to measure loading and speed with.

python -m launch.random_checkpoint --shape=llama2-7b --dtype=bfloat16 --out=DIR
"""

from absl import flags

from .flags import require_choice, run
from .path_flags import define_path

SHAPE = flags.DEFINE_string("shape", "llama2-7b", "Published model whose shape to take.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Number type of the files.")
OUT = define_path("out", "Folder to write.", output="folder", required=True)
SHARD_GB = flags.DEFINE_float("shard_gb", 2.0, "Largest size of a file, in GB.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random numbers.")


def main(_: object) -> None:
    """Writes the folder."""
    from mossa_jax.llama.published import PUBLISHED, write_random

    require_choice(SHAPE, sorted(PUBLISHED))
    write_random(OUT.value, SHAPE.value, DTYPE.value, SHARD_GB.value, SEED.value)


if __name__ == "__main__":
    run(main)
