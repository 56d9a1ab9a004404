"""Runs the whole experiment: tunes, scores, compares and reports.

python -m launch.run --config=demo --workdir=runs/demo
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import define_profile_flag, define_run_flags, run, run_options

if TYPE_CHECKING:
    from mossa_jax.processes.life import Process

CONFIG, WORKDIR = define_run_flags()
PROFILE = define_profile_flag()


def main(process: Process) -> None:
    """Tunes, compares and reports; prints the findings and the path of the page."""
    from mossa_jax.run import pipeline

    report = pipeline.in_run_folder(
        process, CONFIG.value, WORKDIR.value, pipeline.run_all, PROFILE.value, run_options()
    )
    if report:
        print(pipeline.summary(report))


if __name__ == "__main__":
    run(main)
