"""Measures the cost of a token: speed, share of the machine's peak, and where the time goes, program by program.

python -m launch.bench_token [--base=FOLDER] [--parts=controls,experimental,states,prompts,answers,greedy]
    [--repeats=5] [--out=FILE.json] [--cpu_devices=N]

The programs are those of a run: the steps of controls and of E, the comparison's forward pass, the reading of prompts
and of given answers, and greedy answers. By default there is a device per core.
"""

import json
import os
from typing import Any

from absl import flags

from .flags import require_choice, run
from .path_flags import define_path

_PARTS = "controls,experimental,states,prompts,answers,greedy"

BASE = define_path("base", "Hugging Face folder; default: a small random model.")
PRESET = flags.DEFINE_string("preset", None, "Sizes of the random model by name, 110m or smollm2.")
PARTS = flags.DEFINE_list("parts", _PARTS, f"Any of {_PARTS.replace(',', ', ')}.")
ROW_LENGTH = flags.DEFINE_integer("row_length", None, "Positions of a row; default 256.")
RANK = flags.DEFINE_integer("rank", None, "Rank of the adapters; default 8.")
TARGETS = flags.DEFINE_list("targets", None, "Projections that the adapters update; default q_proj,v_proj.")
CONTROL_ROWS = flags.DEFINE_integer("control_rows", None, "Rows per control and step; default 1.")
EXPERIMENTAL_ROWS = flags.DEFINE_integer("experimental_rows", None, "Rows per step of E; default 8.")
BATCH_ROWS = flags.DEFINE_integer("batch_rows", None, "Rows of packed prompts per pass; default 8.")
MODELS = flags.DEFINE_integer("models", None, "Models that are compared, and answer, at once; default 3.")
SHARED = flags.DEFINE_integer("shared", None, "Ids that all prompts begin with; default 100.")
OWN = flags.DEFINE_integer("own", None, "Mean number of a prompt's own ids; default 40.")
ANSWER = flags.DEFINE_integer("answer", None, "Mean number of an answer's ids; default 8.")
ANSWERS = flags.DEFINE_integer("answers", None, "Given answers per prompt; default 4.")
PROMPTS = flags.DEFINE_integer("prompts", None, "Prompts that are answered at once; default 32.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", None, "Tokens of each greedy answer; default 16.")
REMAT = flags.DEFINE_bool("remat", False, "Training steps recompute the inside of blocks.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each program, after one that is not timed.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, prompts and answers.")
OUT = define_path("out", "JSON file to write.", output="file")

flags.FLAGS.set_default("cpu_devices", os.cpu_count() or 1)


def main(_: object) -> None:
    """Prints the table, and writes or prints the JSON object."""
    from mossa_jax.benchmarks import random_models, token_cost
    from mossa_jax.benchmarks.token_programs import Workload
    from mossa_jax.files.write import write_json

    require_choice(PARTS, _PARTS.split(","))
    require_choice(PRESET, sorted(random_models.PRESETS))
    sizes = (
        ROW_LENGTH, RANK, CONTROL_ROWS, EXPERIMENTAL_ROWS, BATCH_ROWS, MODELS, SHARED, OWN, ANSWER, ANSWERS, PROMPTS,
        NEW_TOKENS,
    )  # fmt: skip
    overrides: dict[str, Any] = {flag.name: flag.value for flag in sizes if flag.value is not None}
    if TARGETS.value is not None:
        overrides["targets"] = tuple(TARGETS.value)
    work = Workload(**overrides, remat=REMAT.value, repeats=REPEATS.value, seed=SEED.value)
    record = token_cost.measure(work, BASE.value, PRESET.value, PARTS.value)
    print(token_cost.table(record))
    if OUT.value:
        write_json(OUT.value, record)
    else:
        print(json.dumps(record))


if __name__ == "__main__":
    run(main)
