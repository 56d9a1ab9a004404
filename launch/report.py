"""Only findings, figures and page: python -m launch.report --config=configs/demo.py --workdir=runs/demo"""

from launch.main import define_run_flags, in_run_folder, run
from mossa_jax.run import pipeline

CONFIG, WORKDIR = define_run_flags()


def main() -> None:
    """Writes the report again from the tables of the run folder; prints the findings."""
    found = in_run_folder(CONFIG.value, WORKDIR.value, pipeline.report)
    if found:
        print(pipeline.summary(found, WORKDIR.value))


if __name__ == "__main__":
    run(main)
