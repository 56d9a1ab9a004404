"""Writes a model with a PEFT adapter merged into it as a Hugging Face folder.

python -m launch.export --base=MODEL --adapter=PEFT --out=DIR
"""

from absl import flags

from .flags import run

BASE = flags.DEFINE_string("base", None, "Base model: Hugging Face folder or hub id.", required=True)
ADAPTER = flags.DEFINE_string("adapter", None, "PEFT folder.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; new or empty.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Number type to write.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id in --base.")


def main(_: object) -> None:
    """Writes the folder and prints its path."""
    from mossa_jax.llama.files.merge import export_merged

    export_merged(BASE.value, ADAPTER.value, OUT.value, dtype=DTYPE.value, revision=REVISION.value)
    print(OUT.value)


if __name__ == "__main__":
    run(main)
