"""Tunes E and every control model, and scores them; compares nothing.

python -m launch.tune --config=demo --workdir=runs/demo
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import attempt_options, define_run_flags, define_tuning_flags, run

if TYPE_CHECKING:
    from mossa_jax.processes.life import Process

CONFIG, WORKDIR = define_run_flags()
PROFILE = define_tuning_flags()


def main(process: Process) -> None:
    """Tunes and scores."""
    from mossa_jax.run import pipeline

    pipeline.in_run_folder(process, CONFIG.value, WORKDIR.value, pipeline.tune, PROFILE.value, attempt_options())


if __name__ == "__main__":
    run(main)
