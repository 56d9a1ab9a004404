"""The whole experiment: python -m launch.run --config=configs/demo.py --workdir=runs/demo"""

from launch.main import define_profile_flag, define_run_flags, in_run_folder, run
from mossa_jax.run import pipeline as experiment

CONFIG, WORKDIR = define_run_flags()
PROFILE = define_profile_flag()


def main() -> None:
    """Tunes, compares, reports; prints the findings and the page's path."""
    found = in_run_folder(CONFIG.value, WORKDIR.value, experiment.run, PROFILE.value)
    if found:
        print(experiment.summary(found, WORKDIR.value))


if __name__ == "__main__":
    run(main)
