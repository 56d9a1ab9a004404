"""Looks at the data before a run: a row per task, the mixture, and what would spoil the result; trains nothing.

python -m launch.tasks --config=NAME [--out=DIR] [--export=FOLDER]
"""

from absl import flags

from .flags import define_config_flag, run

CONFIG = define_config_flag()
OUT = flags.DEFINE_string("out", None, "Folder for tasks.csv, mixture.csv, warnings.txt and lengths.png.")
EXPORT = flags.DEFINE_string("export", None, "New folder for the suite's rows, as suite `folder` reads them.")


def main(_: object) -> None:
    """Prints the table, the mixture and the warnings."""
    from etils import epath

    from mossa_jax.errors import BAD_CONFIG, Refusal
    from mossa_jax.log import log
    from mossa_jax.preview.dataset import preview_dataset, write_preview
    from mossa_jax.preview.text import preview_text
    from mossa_jax.tasks import load_suite
    from mossa_jax.tasks.folder import write_folder

    config = CONFIG.value
    if OUT.value and epath.Path(OUT.value).exists() and not epath.Path(OUT.value).is_dir():
        raise Refusal(BAD_CONFIG, f"--out={OUT.value} is a file; name a folder")
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
