"""Measures tuning against PEFT on torch, side by side on this machine's CPU.

python -m launch.bench_tuning [--tasks=FOLDER] [--base=MODEL] [--repeats=5] [--out=FILE.json] [--cpu_devices=N]

By default our side has a device per core, torch a thread per core.
"""

import json
import os
import pathlib

from absl import flags

from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import run

TASKS = flags.DEFINE_string("tasks", None, "Folder of tasks, as for suite `folder`; default: the embedded suite.")
BASE = flags.DEFINE_string("base", None, "MODEL to tune on the tasks; default: 19 million random parameters.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "JSON file to write.")

flags.FLAGS.set_default("cpu_devices", os.cpu_count() or 1)


def main(_: object) -> None:
    """Prints the table and the JSON object."""
    from mossa_jax.benchmarks import tuning as benchmark
    from mossa_jax.benchmarks.tuning_data import Workload
    from mossa_jax.files.write import write_json

    if OUT.value and not pathlib.Path(OUT.value).absolute().parent.is_dir():
        raise Refusal(BAD_CONFIG, f"--out={OUT.value}: its folder does not exist; create it first")
    record = benchmark.measure(Workload(repeats=REPEATS.value), TASKS.value, BASE.value)
    if OUT.value:
        write_json(OUT.value, record)
    print(benchmark.table(record))
    print(json.dumps(record))


if __name__ == "__main__":
    run(main)
