"""Files of a run folder, found as a person would."""

import pathlib

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
