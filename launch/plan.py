"""Before you pay: compiles for TPU slices that are not here, and prints the memory a chip needs.

python -m launch.plan --shape=llama2-7b --topology=v5e:4x4 [--tensor=4]
python -m launch.plan --shape=llama2-7b --topology=v5e:4x4 --stage=tune --slots=16 --fsdp=4 [--rows=4]

The layerwise forward pass of a comparison, or the training step of a population, then with its FLOPs, its transfers
between chips and the hours of the paper's experiment. Needs the package libtpu (pip install libtpu), no TPU.
"""

import json
from typing import Any

import jax
from absl import flags

from launch.main import run
from mossa_jax.config import Mesh
from mossa_jax.llama.architecture import Architecture, architecture_from_config, read_architecture
from mossa_jax.llama.hub import locate
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.plan import check_fits, chip_bytes, chip_flops, plan_forward, plan_hours, plan_tuning, topology_devices
from mossa_jax.rundir import BAD_CONFIG, Refusal, write_json

jax.config.update("jax_platforms", "cpu")  # what is compiled for is named by --topology; nothing runs

STAGE = flags.DEFINE_enum("stage", "forward", ["forward", "tune"], "The forward pass, or the training step.")
SHAPE = flags.DEFINE_enum("shape", None, sorted(PUBLISHED), "A published model's shape; or give --base.")
BASE = flags.DEFINE_string("base", None, "Hugging Face folder or hub id, of which config.json is read.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id given as --base.")
TOPOLOGY = flags.DEFINE_list("topology", ["v5e:4x4"], "TPU slices, as v5e:4x4 or v5p:2x2x4, separated by commas.")
ADAPTER = flags.DEFINE_integer("adapter", -1, "tune: devices on the adapter axis; -1: what the others leave.")
FSDP = flags.DEFINE_integer("fsdp", None, "Devices on the fsdp axis; default: all that tensor leaves, for tune 1.")
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices on the tensor axis.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Weights and compute.")
MODELS = flags.DEFINE_integer("models", 4, "forward: models over the same prompts: pre-trained, E and controls.")
PROMPTS = flags.DEFINE_integer("prompts", 2048, "forward: prompts of a task.")
RANK = flags.DEFINE_integer("rank", 8, "LoRA rank.")
TARGETS = flags.DEFINE_list("targets", ["q_proj", "v_proj"], "tune: projections with an adapter.")
ROWS = flags.DEFINE_integer("rows", None, "Packed rows in a batch (default 16), for tune a model and step (default 4).")
ROW_LENGTH = flags.DEFINE_integer("row_length", 1024, "Positions of a packed row.")
SLOTS = flags.DEFINE_integer("slots", 16, "tune: models trained at once.")
ANSWERS = flags.DEFINE_integer("answers", 512, "tune: the most answer tokens in a row.")
REMAT = flags.DEFINE_boolean("remat", True, "tune: recompute the inside of blocks in the backward pass.")
PARTS = flags.DEFINE_integer("parts", 1, "tune: parts that the rows of a step are worked through in.")
TOKENS = flags.DEFINE_float("tokens", 160e6, "tune: tokens of all 60 controls, one pass.")
EPOCHS = flags.DEFINE_float("epochs", 3, "tune: passes.")
USE = flags.DEFINE_float("use", 0.4, "tune: model FLOPs over the chips' peak in bfloat16.")
SLOT_USE = flags.DEFINE_float("slot_use", 0, "tune: share of the slots' steps in use; 0: planned from the tasks' rows.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def _forward(arch: Architecture, name: str, devices: list[jax.Device], topology: str) -> dict[str, Any]:
    mesh = Mesh(1, -1 if FSDP.value is None else FSDP.value, TENSOR.value)
    return plan_forward(
        arch, devices, mesh, name=name, dtype=DTYPE.value, models=MODELS.value, rank=RANK.value, rows=ROWS.value or 16,
        row_length=ROW_LENGTH.value, prompts=PROMPTS.value,
    )  # fmt: skip


def _tune(arch: Architecture, name: str, devices: list[jax.Device], topology: str) -> dict[str, Any]:
    mesh, rows = Mesh(ADAPTER.value, FSDP.value or 1, TENSOR.value), ROWS.value or 4
    row = plan_tuning(
        arch, devices, mesh, name=name, dtype=DTYPE.value, slots=SLOTS.value, rows=rows, row_length=ROW_LENGTH.value,
        rank=RANK.value, targets=TARGETS.value, answers=ANSWERS.value, remat=REMAT.value, parts=PARTS.value,
    )  # fmt: skip
    batch = rows * ROW_LENGTH.value
    hours = plan_hours(
        row["flops"]["model"] / (row["slots"] * batch), topology, len(devices), slots=row["slots"], batch=batch,
        tokens=TOKENS.value, epochs=EPOCHS.value, use=USE.value, slot_use=SLOT_USE.value,
    )  # fmt: skip
    seconds = row["flops"]["model"] / (USE.value * len(devices) * chip_flops(topology))
    return row | {"step_seconds": seconds, "hours": hours}


def _print(row: dict[str, Any]) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
    print(
        f"{row['model']} {row['stage']} on {row['topology']} ({row['chips']} chips, {mesh}, {row['attention']}): "
        f"{row['total'] / 2**30:.2f} GiB a chip of {row['room'] / 2**30:g} "
        f"(base {row['base'] / 2**30:.2f}, arguments {row['arguments'] / 2**30:.2f}, "
        f"temporary {row['temporary'] / 2**30:.2f}), "
        f"{'fits' if row['fits'] else 'DOES NOT FIT'}; compiled in {row['compile_seconds']} s"
    )
    if row["stage"] == "forward":
        return
    flops = row["flops"]
    print(
        f"  a step of {row['slots']} slots: {flops['model']:.3e} FLOPs and {flops['recomputed']:.3e} recomputed, "
        f"{row['step_seconds']:.2f} s at use {USE.value:g}"
    )
    if row["collectives"] is None:
        print("  transfers between chips are not known: the program's text cannot be read")
    for found in row["collectives"] or ():
        print(f"  {found['kind']} over {found['axes']}: {found['count']} a step, {found['bytes'] / 1e9:.3f} GB a chip")
    for name, hours in row["hours"].items():
        slots = f", slots used {hours['slot_use']:.3f}" if name == "controls" else ""
        print(
            f"  {name}: {hours['tokens'] / 1e6:.0f} M tokens, {hours['flops']:.2e} FLOPs, "
            f"{hours['chip_hours']:.1f} chip-hours, {hours['hours']:.2f} hours{slots}"
        )


def main() -> None:
    """Prints a table per topology."""
    if (SHAPE.value is None) == (BASE.value is None):
        raise Refusal(BAD_CONFIG, "give either --shape or --base")
    if SHAPE.value:
        arch, name = architecture_from_config(PUBLISHED[SHAPE.value], SHAPE.value), SHAPE.value
    else:
        arch, name = read_architecture(locate(BASE.value, REVISION.value, config_only=True)), BASE.value
    plan = {"forward": _forward, "tune": _tune}[STAGE.value]
    found = []
    for topology in TOPOLOGY.value:
        devices = topology_devices(topology)
        row = {"model": name, "stage": STAGE.value, "topology": topology, "chips": len(devices)}
        row |= plan(arch, name, devices, topology)
        row["room"] = min(row.get("room", chip_bytes(topology)), chip_bytes(topology))
        row["fits"] = row["total"] <= row["room"]
        found.append(row)
        _print(row)
    if OUT.value:
        write_json(OUT.value, found)
    print(json.dumps(found))
    remedy = "spread it wider (--fsdp, --tensor, more chips) or give it less at once (--rows, --slots, --models)"
    for row in found:
        check_fits(f"{name} {row['stage']} on {row['topology']}", row["total"], row["room"], remedy)


if __name__ == "__main__":
    run(main)
