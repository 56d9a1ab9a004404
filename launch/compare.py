"""Compares two existing models, or saved states of two models, layer by layer.

python -m launch.compare --base=MODEL --experimental=pretrained --control=ADAPTER --prompts=FILE.jsonl --out=FILE.csv
python -m launch.compare --states_a=FOLDER --states_b=FOLDER [--ids_a=FILE --ids_b=FILE] --out=FILE.csv

Both take --items=FILE: rows with the same item, as questions on one passage, are related. Several files of prompts
(--prompts=A.jsonl,B.jsonl) give one table, with a column that names the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import run
from .path_flags import define_path, define_paths

if TYPE_CHECKING:
    import pandas as pd

BASE = define_path("base", "Base model: Hugging Face folder or hub id.")
EXPERIMENTAL = define_path("experimental", "pretrained, a PEFT folder, or a model.", words=("pretrained",))
CONTROL = define_path("control", "PEFT folder or model.")
PROMPTS = define_paths(
    "prompts",
    "JSONL file: an object with `inputs` per line, and with `item` and `template` if they are known. Several files: "
    "with commas between them, or the flag again.",
)
STATES_A = define_path("states_a", "Folder of saved states: an array [rows, width] per layer.")
STATES_B = define_path("states_b", "Folder of the other model's saved states.")
IDS_A = define_path("ids_a", "Ids of the rows of --states_a: .txt, .json or .npy.")
IDS_B = define_path("ids_b", "Ids of the rows of --states_b.")
ITEMS = define_path(
    "items",
    "Item of each prompt or row, one id per row: .txt, .json or .npy; instead of those in --prompts. guess: prompts "
    "that share long texts are one item, as in a run whose rows name none.",
    words=("guess",),
)
OUT = define_path("out", "CSV file to write.", output="file", required=True)
TEMPLATE = flags.DEFINE_enum("template", "none", ["none", "llama2", "chat"], "Prompt template.")
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "Cut longer prompts to this many tokens; default: the model's positions.", lower_bound=1
)
TRUNCATION = flags.DEFINE_enum(
    "truncation",
    "keep_end",
    ["keep_end", "paper"],
    "What a prompt that is too long loses: the beginning of its content (keep_end) or its right end (paper).",
)
POOL = flags.DEFINE_enum(
    "pool",
    "last",
    ["last", "mean", "all"],
    "States to compare: the last token's, the mean over tokens, or all: every token is a row, without intervals.",
)
PERMUTATIONS = flags.DEFINE_integer(
    "permutations", 0, "Re-pairings behind p; columns null_mean, p and q. 0: none.", lower_bound=0
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the re-pairings.", lower_bound=0)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Number type of weights and compute.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id in --base.")

_GUESS = "guess"
_MODELS, _FOLDERS = (BASE, EXPERIMENTAL, CONTROL, PROMPTS), (STATES_A, STATES_B)
_ONLY_MODELS = (*_MODELS, TEMPLATE, MAX_TOKENS, TRUNCATION, POOL, DTYPE, REVISION)


def main(_: object) -> None:
    """Writes the table and prints it."""
    from mossa_jax.files.csv_text import csv_text
    from mossa_jax.files.write import write_text

    table = _compare_models(_files(PROMPTS.value)) if STATES_A.value is None else _compare_saved()
    write_text(OUT.value, csv_text(table))
    print(table.to_string(index=False))


def _compare_models(files: Sequence[str]) -> pd.DataFrame:
    from mossa_jax.existing.compare import compare
    from mossa_jax.existing.prompt_files import read_prompt_files

    lists = read_prompt_files(files)
    items: Any = None if POOL.value == "all" else lists.items
    if ITEMS.value:
        items = _GUESS if ITEMS.value == _GUESS else {files[0]: _items()}
    templates: Any = lists.templates
    table = compare(
        BASE.value, EXPERIMENTAL.value, CONTROL.value, lists.prompts,
        pool=POOL.value, template=TEMPLATE.value, max_tokens=MAX_TOKENS.value, truncation=TRUNCATION.value,
        dtype=DTYPE.value, revision=REVISION.value, items=items, templates=templates,
        permutations=PERMUTATIONS.value, seed=SEED.value,
    )  # fmt: skip
    return table if len(files) > 1 else table.drop(columns="prompts")


def _compare_saved() -> pd.DataFrame:
    from mossa_jax.existing.folders import compare_saved

    return compare_saved(
        STATES_A.value, STATES_B.value, ids_a=IDS_A.value, ids_b=IDS_B.value, items=_items(),
        permutations=PERMUTATIONS.value, seed=SEED.value,
    )  # fmt: skip


def _items() -> tuple[str, ...] | None:
    from mossa_jax.states.folders import read_ids

    return read_ids(Path(ITEMS.value)) if ITEMS.value else None


def _files(values: Sequence[Sequence[str]] | None) -> list[str]:
    """Returns the files that --prompts names."""
    return [file for files in values or () for file in files]


def _check(out: str | None) -> bool:
    """Refuses flags that do not go together while they are parsed, before anything slow is imported."""
    is_saved = any(flag.value is not None for flag in (*_FOLDERS, IDS_A, IDS_B))
    required, excluded = (_FOLDERS, _ONLY_MODELS) if is_saved else (_MODELS, ())
    missing = [flag.name for flag in required if not flag.value]
    stray = [flag.name for flag in excluded if flag.present]
    if missing:
        raise Refusal(
            BAD_CONFIG,
            f"--{missing[0]} is not given; models need --base, --experimental, --control and --prompts, saved states "
            "need --states_a and --states_b",
        )
    if stray:
        raise Refusal(BAD_CONFIG, f"--{stray[0]} does not go with --states_a; compare either models or saved states")
    files = _files(PROMPTS.value)
    if len(set(files)) < len(files):
        raise Refusal(BAD_CONFIG, f"--prompts={','.join(files)}: a file is named twice; name each once")
    if ITEMS.value == _GUESS and is_saved:
        raise Refusal(BAD_CONFIG, "--items=guess needs the texts of prompts, which saved states lack; name a file")
    if ITEMS.value not in (None, _GUESS) and len(files) > 1:
        raise Refusal(
            BAD_CONFIG, f"--items={ITEMS.value} is for one file of prompts; write `item` into the rows of each instead"
        )
    for flag in (PERMUTATIONS, ITEMS) if POOL.value == "all" else ():
        if flag.value:
            raise Refusal(
                BAD_CONFIG,
                f"--{flag.name}={flag.value} does not go with --pool=all, which makes every token a row and keeps "
                "none; give --pool=last or mean",
            )
    return True


flags.register_validator(OUT, _check)

if __name__ == "__main__":
    run(main)
