"""Measures tuning against PEFT on torch, side by side on this machine's CPU.

python -m launch.bench_tuning [--tasks=FOLDER] [--base=MODEL] [--repeats=5] [--out=FILE.json] [--cpu_devices=N]

By default our side has a device per core, torch a thread per core.
"""

import json
import os

from absl import flags

from .flags import run
from .path_flags import define_path

TASKS = define_path("tasks", "Folder of tasks, as for suite `folder`; default: the embedded suite.")
BASE = define_path("base", "MODEL to tune on the tasks; default: 19 million random parameters.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.", lower_bound=1)
OUT = define_path("out", "JSON file to write.", output="file")

flags.FLAGS.set_default("cpu_devices", os.cpu_count() or 1)


def main(_: object) -> None:
    """Prints the table and the JSON object."""
    from mossa_jax.benchmarks import tuning as benchmark
    from mossa_jax.benchmarks.tuning_data import Workload
    from mossa_jax.files.write import write_json

    record = benchmark.measure(Workload(repeats=REPEATS.value), TASKS.value, BASE.value)
    if OUT.value:
        write_json(OUT.value, record)
    print(benchmark.table(record))
    print(json.dumps(record))


if __name__ == "__main__":
    run(main)
