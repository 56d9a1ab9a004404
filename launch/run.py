"""The whole experiment: python -m launch.run --config=configs/demo.py --workdir=runs/demo"""

from launch.main import define_profile_flag, define_run_flags, in_run_folder, run
from mossa_jax.run import pipeline

CONFIG, WORKDIR = define_run_flags()
PROFILE = define_profile_flag()


def main() -> None:
    """Tunes, compares, reports; prints the findings and the page's path."""
    found = in_run_folder(CONFIG.value, WORKDIR.value, pipeline.run_all, PROFILE.value)
    if found:
        print(pipeline.summary(found, WORKDIR.value))


if __name__ == "__main__":
    run(main)
