"""Writes a model with a PEFT adapter merged into it as a Hugging Face folder.

python -m launch.export --base=MODEL --adapter=PEFT --out=DIR
"""

from absl import flags

from .flags import run
from .path_flags import define_path

BASE = define_path("base", "Base model: Hugging Face folder or hub id.", required=True)
ADAPTER = define_path("adapter", "PEFT folder.", required=True)
OUT = define_path("out", "Folder to write; new or empty.", output="folder", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Number type to write.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id in --base.")


def main(_: object) -> None:
    """Writes the folder and prints its path."""
    from mossa_jax.llama.files.merge import export_merged

    export_merged(BASE.value, ADAPTER.value, OUT.value, dtype=DTYPE.value, revision=REVISION.value)
    print(OUT.value)


if __name__ == "__main__":
    run(main)
