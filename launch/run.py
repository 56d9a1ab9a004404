"""Runs the whole experiment: tunes, scores, compares and reports.

python -m launch.run --config=demo --workdir=runs/demo
python -m launch.run --workdir=runs/demo
python -m launch.run --config=sweep_demo_rank --workdir=runs/ranks

The second continues a run with its own configuration. The third is a sweep: its file has several configurations, which
run one after another in folders of runs/ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config_source import runs_of_sweep
from .flags import attempt_options, define_run_flags, define_tuning_flags, run

if TYPE_CHECKING:
    from mossa_jax.processes.life import Process

CONFIG, WORKDIR = define_run_flags(sweeps=True)
PROFILE = define_tuning_flags()


def main(process: Process) -> None:
    """Tunes, compares and reports; prints the findings and the path of the page."""
    from mossa_jax.run import pipeline, sweep

    work = (WORKDIR.value, pipeline.run_all, PROFILE.value, attempt_options())
    if runs := runs_of_sweep():
        print(sweep.run_sweep(process, runs, *work), end="")
        return
    report = pipeline.in_run_folder(process, CONFIG.value, *work)
    if report:
        print(pipeline.summary(report))


if __name__ == "__main__":
    run(main)
