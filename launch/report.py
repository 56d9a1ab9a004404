"""Writes findings, figures and page again from the tables of a run folder.

python -m launch.report --workdir=runs/demo
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import define_run_flags, run

if TYPE_CHECKING:
    from mossa_jax.processes.life import Process

CONFIG, WORKDIR = define_run_flags()


def main(process: Process) -> None:
    """Writes the report and prints the findings."""
    from mossa_jax.run import pipeline

    report = pipeline.in_run_folder(process, CONFIG.value, WORKDIR.value, pipeline.report)
    if report:
        print(pipeline.summary(report))


if __name__ == "__main__":
    run(main)
