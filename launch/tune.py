"""Only tuning and task scores: python -m launch.tune --config=configs/demo.py --workdir=runs/demo"""

from launch.main import define_profile_flag, define_run_flags, in_run_folder, run
from mossa_jax.run import pipeline

CONFIG, WORKDIR = define_run_flags()
PROFILE = define_profile_flag()


def main() -> None:
    """Tunes E and every control model, and scores them."""
    in_run_folder(CONFIG.value, WORKDIR.value, pipeline.tune, PROFILE.value)


if __name__ == "__main__":
    run(main)
