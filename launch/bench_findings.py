"""Repeats the simulations behind the promises of the findings, and prints a table for each.

python -m launch.bench_findings [--parts=null,rise,shapes,clusters,rows,figure2] [--runs=500] [--out=DIR]
"""

from __future__ import annotations

import pathlib

from absl import flags

from .flags import require_choice, run
from .path_flags import define_path

_PARTS = ("null", "rise", "shapes", "clusters", "rows", "figure2")
PARTS = flags.DEFINE_list("parts", ",".join(_PARTS), f"Any of {', '.join(_PARTS)}.")
RUNS = flags.DEFINE_integer("runs", 500, "Simulated runs per setting.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of all simulations.")
OUT = define_path("out", "Folder for the tables as CSV; without it they are only printed.", output="folder")


def main(_: object) -> None:
    """Runs the chosen simulations and prints their tables."""
    from mossa_jax.benchmarks.findings_statistics import PARTS as SIMULATIONS
    from mossa_jax.files.csv_text import csv_text
    from mossa_jax.files.write import write_text

    require_choice(PARTS, _PARTS)
    for part in PARTS.value:
        table = SIMULATIONS[part](RUNS.value, SEED.value)
        print(f"## {part}\n{table.round(3).to_string(index=False)}\n", flush=True)
        if OUT.value:
            write_text(pathlib.Path(OUT.value) / f"{part}.csv", csv_text(table))


if __name__ == "__main__":
    run(main)
