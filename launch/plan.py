"""Before you pay: compiles for TPU slices that are not here, and prints the memory a chip needs.

python -m launch.plan --shape=llama2-7b --topology=v5e:4x4 [--tensor=4]

Today the layerwise forward pass of a comparison. Needs the package libtpu (pip install libtpu), no TPU.
"""

import json

import jax
from absl import flags

from launch.main import run
from mossa_jax.config import Mesh
from mossa_jax.llama.architecture import architecture_from_config, read_architecture
from mossa_jax.llama.hub import locate
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.plan import chip_bytes, plan_forward, topology_devices
from mossa_jax.rundir import BAD_CONFIG, Refusal, write_json

jax.config.update("jax_platforms", "cpu")  # what is compiled for is named by --topology; nothing runs

SHAPE = flags.DEFINE_enum("shape", None, sorted(PUBLISHED), "A published model's shape; or give --base.")
BASE = flags.DEFINE_string("base", None, "Hugging Face folder or hub id, of which config.json is read.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id given as --base.")
TOPOLOGY = flags.DEFINE_list("topology", ["v5e:4x4"], "TPU slices, as v5e:4x4 or v5p:2x2x4, separated by commas.")
FSDP = flags.DEFINE_integer("fsdp", -1, "Devices on the fsdp axis; -1: what tensor leaves.")
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices on the tensor axis.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Weights and compute.")
MODELS = flags.DEFINE_integer("models", 4, "Models over the same prompts: pre-trained, E and controls.")
RANK = flags.DEFINE_integer("rank", 8, "LoRA rank.")
ROWS = flags.DEFINE_integer("rows", 16, "Packed rows in a batch.")
ROW_LENGTH = flags.DEFINE_integer("row_length", 1024, "Positions of a packed row.")
PROMPTS = flags.DEFINE_integer("prompts", 2048, "Prompts of a task.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main() -> None:
    """Prints a line per topology."""
    if (SHAPE.value is None) == (BASE.value is None):
        raise Refusal(BAD_CONFIG, "give either --shape or --base")
    if SHAPE.value:
        arch, name = architecture_from_config(PUBLISHED[SHAPE.value], SHAPE.value), SHAPE.value
    else:
        arch, name = read_architecture(locate(BASE.value, REVISION.value, config_only=True)), BASE.value
    found = []
    for topology in TOPOLOGY.value:
        devices = topology_devices(topology)
        row = plan_forward(
            arch, devices, Mesh(1, FSDP.value, TENSOR.value), name=name, dtype=DTYPE.value, models=MODELS.value,
            rank=RANK.value, rows=ROWS.value, row_length=ROW_LENGTH.value, prompts=PROMPTS.value,
        )  # fmt: skip
        row = {
            "model": name,
            "topology": topology,
            "chips": len(devices),
            "fits": row["total"] < chip_bytes(topology),
        } | row
        found.append(row)
        print(
            f"{name} forward on {topology} ({len(devices)} chips, tensor {TENSOR.value}, {row['attention']}): "
            f"{row['total'] / 2**30:.2f} GiB a chip of {chip_bytes(topology) / 2**30:.0f} "
            f"(base {row['base'] / 2**30:.2f}, temporary {row['temporary'] / 2**30:.2f}), "
            f"{'fits' if row['fits'] else 'DOES NOT FIT'}; compiled in {row['compile_seconds']} s"
        )
    if OUT.value:
        write_json(OUT.value, found)
    print(json.dumps(found))


if __name__ == "__main__":
    run(main)
