"""Compares two existing models, or saved states of two models, layer by layer.

python -m launch.compare --base=MODEL --experimental=pretrained --control=ADAPTER --prompts=FILE.jsonl --out=FILE.csv
python -m launch.compare --states_a=FOLDER --states_b=FOLDER [--ids_a=FILE --ids_b=FILE] --out=FILE.csv

Both take --items=FILE: rows with the same item, as questions on one passage, are related.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import run

if TYPE_CHECKING:
    import pandas as pd

BASE = flags.DEFINE_string("base", None, "Base model: Hugging Face folder or hub id.")
EXPERIMENTAL = flags.DEFINE_string("experimental", None, "pretrained, a PEFT folder, or a model.")
CONTROL = flags.DEFINE_string("control", None, "PEFT folder or model.")
PROMPTS = flags.DEFINE_string("prompts", None, "JSONL file: an object with `inputs` per line.")
STATES_A = flags.DEFINE_string("states_a", None, "Folder of saved states: an array [rows, width] per layer.")
STATES_B = flags.DEFINE_string("states_b", None, "Folder of the other model's saved states.")
IDS_A = flags.DEFINE_string("ids_a", None, "Ids of the rows of --states_a: .txt, .json or .npy.")
IDS_B = flags.DEFINE_string("ids_b", None, "Ids of the rows of --states_b.")
ITEMS = flags.DEFINE_string("items", None, "Item of each prompt or row, one id per row: .txt, .json or .npy.")
OUT = flags.DEFINE_string("out", None, "CSV file to write.", required=True)
TEMPLATE = flags.DEFINE_enum("template", "none", ["none", "llama2", "chat"], "Prompt template.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "Cut prompts on the right to this many tokens.", lower_bound=1)
POOL = flags.DEFINE_enum("pool", "last", ["last", "mean"], "States to compare: the last token's, or their mean.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Number type of weights and compute.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id in --base.")


def _compare_models() -> pd.DataFrame:
    from mossa_jax.existing import compare as api
    from mossa_jax.tasks.row_files import read_objects

    prompts = [row["inputs"] for row in read_objects(PROMPTS.value, ("inputs",))]
    return api.compare(
        BASE.value, EXPERIMENTAL.value, CONTROL.value, prompts,
        pool=POOL.value, template=TEMPLATE.value, max_tokens=MAX_TOKENS.value, dtype=DTYPE.value,
        revision=REVISION.value, items=_items(),
    )  # fmt: skip


def _items() -> tuple[str, ...] | None:
    from mossa_jax.states.folders import read_ids

    return read_ids(Path(ITEMS.value)) if ITEMS.value is not None else None


def _check(required: Sequence[flags.FlagHolder], excluded: Sequence[flags.FlagHolder]) -> None:
    """Refuses a command line that is neither of the two above."""
    missing = [flag.name for flag in required if flag.value is None]
    stray = [flag.name for flag in excluded if flag.value is not None]
    if missing:
        raise Refusal(
            BAD_CONFIG,
            f"--{missing[0]} is not given; models need --base, --experimental, --control and --prompts, saved states "
            "need --states_a and --states_b",
        )
    if stray:
        raise Refusal(
            BAD_CONFIG, f"--{stray[0]} does not go with --{required[0].name}; compare either models or saved states"
        )


def main(_: object) -> None:
    """Writes the table and prints it."""
    from mossa_jax.existing.folders import compare_saved
    from mossa_jax.files.write import write_text

    models, folders = (BASE, EXPERIMENTAL, CONTROL, PROMPTS), (STATES_A, STATES_B)
    if any(flag.value is not None for flag in folders):
        _check(folders, models)
        table = compare_saved(STATES_A.value, STATES_B.value, ids_a=IDS_A.value, ids_b=IDS_B.value, items=_items())
    else:
        _check(models, (IDS_A, IDS_B))
        table = _compare_models()
    write_text(OUT.value, table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    run(main)
