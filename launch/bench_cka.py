"""Times CKA against the procedures in common use.

python -m launch.bench_cka --n=2048 --d=1024 --layers=12 --rounds=5 --out=FILE.json
"""

import json
import pathlib

from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("n", 2048, "rows (prompts)")
flags.DEFINE_integer("d", 1024, "width of a state")
flags.DEFINE_integer("layers", 12, "matching layers of the two models")
flags.DEFINE_integer("rounds", 5, "timed rounds; medians are reported")
flags.DEFINE_float("offset", 0.0, "common offset of the states, in units of the noise")
flags.DEFINE_integer("seed", 0, "of the synthetic states")
flags.DEFINE_string("out", None, "file for the JSON record; without it the record is printed as one line")


def main() -> None:
    """Measures, prints the table, writes or prints the record."""
    from mossa_jax.rundir import Refusal
    from mossa_jax.similarity import benchmark

    if FLAGS.out and not pathlib.Path(FLAGS.out).absolute().parent.is_dir():
        raise Refusal(2, f"--out={FLAGS.out}: its folder does not exist; create it first")
    names = ("n", "d", "layers", "rounds", "offset", "seed")
    record = benchmark.measure(benchmark.Workload(**{name: FLAGS[name].value for name in names}))
    print(benchmark.table(record))
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(json.dumps(record) + "\n", encoding="utf-8")
    else:
        print(json.dumps(record))


if __name__ == "__main__":
    from launch.main import run

    run(main)
