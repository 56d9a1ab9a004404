"""Compares several runs: settings, findings, curves over depth, and differences beside the noise of seeds.

python -m launch.runs RUN RUN [RUN ...] [--out=FILE.html] [--paired] [--format=text]

The first run is the reference. RUN is a run folder, or one of its variants: DIR/variants/NAME.
"""

from absl import flags

from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import define_words, run
from .path_flags import define_path

OUT = define_path(
    "out", "Page to write, FILE.html; its tables are written beside it, as FILE.cells.csv.", output="file"
)
PAIRED = flags.DEFINE_boolean(
    "paired", False, "Run the models again where runs share test prompts: intervals of cells then pair their rows."
)
FORMAT = flags.DEFINE_enum("format", "text", ["text", "markdown", "json"], "What is printed.")


def _check(words: list[str]) -> None:
    """Refuses what is no run folder, and a page that cannot be written."""
    from mossa_jax.existing.runs import Run

    if OUT.value is not None and not OUT.value.endswith(".html"):
        raise Refusal(BAD_CONFIG, f"--out={OUT.value}: must end in .html")
    for word in words:
        Run(word).analysis  # noqa: B018


RUNS = define_words("RUN", 2, _check)


def main(_: object) -> None:
    """Prints the comparison, and writes its page."""
    from mossa_jax.existing.between_runs import compare_folders
    from mossa_jax.log import log
    from mossa_jax.report.between_runs.page import write_runs_page
    from mossa_jax.report.between_runs.text import runs_text

    inputs = compare_folders(RUNS, PAIRED.value)
    print(runs_text(inputs, FORMAT.value))
    if OUT.value:
        for path in write_runs_page(OUT.value, inputs):
            log.info("written: %s", path)


if __name__ == "__main__":
    run(main)
