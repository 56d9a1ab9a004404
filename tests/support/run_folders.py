"""Files of a run folder, found as a person would, and changed as only the run itself does."""

import json
import pathlib

from mossa_jax.files import checked
from mossa_jax.llama.files.about import read_about, write_about


def part_of(folder, stage, task):
    """Returns the one part of a task of a stage."""
    (path,) = pathlib.Path(folder).glob(f"results/parts/{stage}/{task}.*.parquet")
    return path


def edit_about(folder, change):
    """Changes the record of an exported model as if it had been written so."""
    folder = pathlib.Path(folder)
    about = read_about(folder)
    change(about)
    write_about(folder, about, but=".safetensors" if "own_weights" in about else "")


def rewrite(path, change):
    """Changes a JSON file of a run folder in place, with its digest; `change` gets its value."""
    value = json.loads(pathlib.Path(path).read_text())
    change(value)
    checked.write_json(path, value)


def rewrite_table(path, table):
    """Writes another table in the place of one, with its digest."""
    checked.write_table(path, table)
