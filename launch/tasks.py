"""Looks at the data before a run: a row per task, the mixture, and what would spoil the result; trains nothing.

python -m launch.tasks --config=NAME [--out=DIR] [--export=FOLDER]
"""

from .flags import define_config_flag, run
from .path_flags import define_path

CONFIG = define_config_flag()
OUT = define_path("out", "Folder for tasks.csv, mixture.csv, warnings.txt and lengths.png.", output="folder")
EXPORT = define_path("export", "New folder for the suite's rows, as suite `folder` reads them.", output="folder")


def main(_: object) -> None:
    """Prints the table, the mixture and the warnings."""
    from mossa_jax.log import log
    from mossa_jax.preview.dataset import preview_dataset, write_preview
    from mossa_jax.preview.text import preview_text
    from mossa_jax.tasks import load_suite
    from mossa_jax.tasks.folder import write_folder

    config = CONFIG.value
    if EXPORT.value:
        log.info("exporting the suite to %s", EXPORT.value)
        most = max(config.tasks.max_train, config.tasks.max_test)
        write_folder(load_suite(config.tasks), EXPORT.value, max_rows=most)
    preview = preview_dataset(config)
    print(preview_text(preview))
    if OUT.value:
        write_preview(preview, OUT.value)
        print(f"\nWritten to {OUT.value}: tasks.csv, mixture.csv, warnings.txt, lengths.png")


if __name__ == "__main__":
    run(main)
