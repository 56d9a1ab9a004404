"""Compares two existing models layer by layer over the prompts of a file.

python -m launch.compare --base=MODEL --experimental=pretrained --control=ADAPTER --prompts=FILE.jsonl --out=FILE.csv
"""

from absl import flags

from launch.main import run
from mossa_jax import api
from mossa_jax.rundir import write_text
from mossa_jax.tasks.rows import read_objects

BASE = flags.DEFINE_string("base", None, "Base model: Hugging Face folder or hub id.", required=True)
EXPERIMENTAL = flags.DEFINE_string("experimental", None, "pretrained, a PEFT folder, or a model.", required=True)
CONTROL = flags.DEFINE_string("control", None, "PEFT folder or model.", required=True)
PROMPTS = flags.DEFINE_string("prompts", None, "JSONL file, an object with `inputs` a line.", required=True)
OUT = flags.DEFINE_string("out", None, "CSV file to write.", required=True)
TEMPLATE = flags.DEFINE_enum("template", "none", ["none", "llama2", "chat"], "Prompt template.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "Cut prompts to so many tokens, on the right.", lower_bound=1)
POOL = flags.DEFINE_enum("pool", "last", ["last", "mean"], "Which tokens' states: the last one's, or their mean.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Weights and compute.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id given as --base.")


def main() -> None:
    """Writes the table and prints it."""
    prompts = [row["inputs"] for row in read_objects(PROMPTS.value, ("inputs",))]
    table = api.compare(
        BASE.value, EXPERIMENTAL.value, CONTROL.value, prompts,
        pool=POOL.value, template=TEMPLATE.value, max_tokens=MAX_TOKENS.value, dtype=DTYPE.value,
        revision=REVISION.value,
    )  # fmt: skip
    write_text(OUT.value, table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    run(main)
