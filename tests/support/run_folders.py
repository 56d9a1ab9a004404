"""Files of a run folder, found as a person would."""

import pathlib


def part_of(folder, stage, task):
    """Returns the one part of a task of a stage."""
    (path,) = pathlib.Path(folder).glob(f"results/parts/{stage}/{task}.*.parquet")
    return path
