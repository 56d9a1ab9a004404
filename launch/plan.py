"""Before you pay: compiles for TPU slices that are not here, and prints the memory a chip needs.

python -m launch.plan --shape=llama2-7b --topology=v5e:4x4 [--tensor=4]
python -m launch.plan --shape=llama2-7b --topology=v5e:4x4 --stage=tune --slots=16 --fsdp=4 [--rows=4]
python -m launch.plan --config=configs/llama2_7b_flan2021.py --shape=llama2-7b --topology=v5e:4x4 --stage=tune

The layerwise forward pass of a comparison; or the training steps of a run, that of the controls and that of E, with
their FLOPs, their transfers between chips and the hours of the paper's experiment. With --config sizes are those of a
run; flags that are given go first. Needs the package libtpu (pip install libtpu), no TPU.
"""

import json
from dataclasses import replace
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from launch.main import checked, run
from mossa_jax import config as config_lib
from mossa_jax.config import MINIATURE, Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning
from mossa_jax.llama.architecture import Architecture, architecture_from_config, read_architecture
from mossa_jax.llama.hub import locate
from mossa_jax.llama.published import PUBLISHED
from mossa_jax.mesh import make_mesh
from mossa_jax.plan import (
    check_fits,
    chip_bytes,
    chip_flops,
    leading_ids,
    paper_rows,
    plan_forward,
    plan_hours,
    plan_tuning,
    topology_devices,
    tuning_mesh,
)
from mossa_jax.rundir import BAD_CONFIG, Refusal, write_json

jax.config.update("jax_platforms", "cpu")  # what is compiled for is named by --topology; nothing runs

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of a run, whose sizes are taken.")
STAGE = flags.DEFINE_enum("stage", "forward", ["forward", "tune"], "The forward pass, or the training steps.")
SHAPE = flags.DEFINE_enum("shape", None, sorted(PUBLISHED), "A published model's shape; or give --base.")
BASE = flags.DEFINE_string("base", None, "Hugging Face folder or hub id, of which config.json is read.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id given as --base.")
TOPOLOGY = flags.DEFINE_list("topology", ["v5e:4x4"], "TPU slices, as v5e:4x4 or v5p:2x2x4, separated by commas.")
ADAPTER = flags.DEFINE_integer("adapter", None, "tune: devices on the adapter axis; default: what the others leave.")
FSDP = flags.DEFINE_integer("fsdp", None, "Devices on the fsdp axis; default: all that tensor leaves, for tune 1.")
TENSOR = flags.DEFINE_integer("tensor", None, "Devices on the tensor axis; default 1.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Weights and compute; default bfloat16.")
MODELS = flags.DEFINE_integer("models", None, "forward: models over the same prompts: pre-trained, E and controls (4).")
PROMPTS = flags.DEFINE_integer("prompts", None, "forward: prompts of a task (default 2048).")
RANK = flags.DEFINE_integer("rank", None, "LoRA rank (default 8).")
TARGETS = flags.DEFINE_list("targets", None, "tune: projections with an adapter (default q_proj,v_proj).")
ROWS = flags.DEFINE_integer("rows", None, "Packed rows in a batch (default 16), for tune a control and step (4).")
TUNED_ROWS = flags.DEFINE_integer(
    "tuned_rows",
    None,
    "tune: packed rows of E in a step; default: as of a control, rounded up to divide over all chips.",
)
ROW_LENGTH = flags.DEFINE_integer("row_length", None, "Positions of a packed row (default 1024).")
SLOTS = flags.DEFINE_integer("slots", None, "tune: models trained at once (default 16).")
ANSWERS = flags.DEFINE_integer("answers", 512, "tune: the most answer tokens in a row.")
REMAT = flags.DEFINE_string("remat", None, "tune: as tuning.remat: auto (default), on or off.")
PARTS = flags.DEFINE_integer("parts", None, "tune: parts that the rows of a step are worked through in (default 1).")
TEMPLATE = flags.DEFINE_enum("template", None, ["none", "llama2", "chat"], "tune: as tokens.template; default none.")
TOKENS = flags.DEFINE_float("tokens", 160e6, "tune: tokens of all 60 controls, one pass, without the template's.")
EPOCHS = flags.DEFINE_float("epochs", None, "tune: passes (default 3).")
USE = flags.DEFINE_float("use", 0.4, "tune: model FLOPs over the chips' peak in bfloat16.")
SLOT_USE = flags.DEFINE_float("slot_use", 0, "tune: share of the slots' steps in use; 0: planned from the tasks' rows.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def _settings() -> Config:
    """What is planned: --config, or the usual sizes; with the flags that are given over it."""
    tune = STAGE.value == "tune"
    if CONFIG.value is not None:
        config = checked(CONFIG.value)
        config_lib.check(config)
    else:
        config = Config(
            dtype="bfloat16",
            tasks=Tasks(max_test=2048),
            tuning=Tuning(slots=16, control=Schedule(batch_rows=4), experimental=Schedule(batch_rows=0)),
            compare=Compare(batch_rows=16),
            tokens=Tokens(max_tokens=0),  # how long examples are is not known
            mesh=Mesh(-1, 1, 1) if tune else Mesh(1, -1, 1),
        )
    given = lambda **named: {name: flag.value for name, flag in named.items() if flag.value is not None}  # noqa: E731
    schedule = given(parts=PARTS, epochs=EPOCHS)
    control = replace(config.tuning.control, **schedule, **given(batch_rows=ROWS))
    experimental = replace(config.tuning.experimental, **schedule, **given(batch_rows=TUNED_ROWS))
    tuning = given(rank=RANK, targets=TARGETS, slots=SLOTS, remat=REMAT)
    mesh = given(fsdp=FSDP, tensor=TENSOR) | (given(adapter=ADAPTER) if tune else {})
    config = replace(
        config,
        tuning=replace(config.tuning, control=control, experimental=experimental, **tuning),
        tasks=replace(config.tasks, **given(max_test=PROMPTS)),
        tokens=replace(config.tokens, **given(row_length=ROW_LENGTH, template=TEMPLATE)),
        compare=replace(config.compare, **given(batch_rows=ROWS)),
        mesh=replace(config.mesh, **mesh),
        **given(base=BASE, dtype=DTYPE),
    )
    if config.tuning.remat.lower() not in config_lib.REMAT:
        raise Refusal(BAD_CONFIG, f"--remat={REMAT.value}: must be one of {', '.join(config_lib.REMAT)}")
    return replace(config, revision=REVISION.value) if REVISION.value or BASE.value else config


def _forward(config: Config, arch: Architecture, name: str, devices: list[jax.Device], topology: str) -> dict[str, Any]:
    models = MODELS.value or 3 + config.compare.mismatched
    return plan_forward(
        arch, devices, config.mesh, name=name, dtype=config.dtype, models=models, rank=config.tuning.rank,
        rows=config.compare.batch_rows, row_length=config.tokens.row_length, prompts=config.tasks.max_test,
    )  # fmt: skip


def _tune(config: Config, arch: Architecture, name: str, devices: list[jax.Device], topology: str) -> dict[str, Any]:
    tuning, length = config.tuning, config.tokens.row_length
    for kind, schedule in (("control", tuning.control), ("experimental", tuning.experimental)):
        if schedule.method != "lora":
            raise Refusal(BAD_CONFIG, f"config.tuning.{kind}.method={schedule.method!r}: only 'lora' can be planned")
    tokens, lead = leading_ids(config, arch, SHAPE.value is not None, TOKENS.value)
    common = dict(
        name=name, dtype=config.dtype, row_length=length, rank=tuning.rank, targets=tuning.targets,
        answers=ANSWERS.value, remat=tuning.remat, room=chip_bytes(topology), lead=lead,
        reach=max(config.tokens.max_tokens - lead, 0),
    )  # fmt: skip
    rows = tuning.control.batch_rows
    spread = make_mesh(config.mesh, adapters=False, devices=devices).shape["fsdp"]
    even = spread * tuning.experimental.parts
    tuned_rows = tuning.experimental.batch_rows or -(-rows // even) * even
    controls = {"rows": rows, "parts": tuning.control.parts, "adapters": True}
    alone = {"rows": tuned_rows, "parts": tuning.experimental.parts, "adapters": False}
    for program in (controls, alone):  # before anything is compiled
        tuning_mesh(arch, devices, config.mesh, name=name, dtype=config.dtype, lead=lead, **program)
    slots = min(tuning.slots, len(paper_rows()[0]))
    row = plan_tuning(arch, devices, config.mesh, slots=slots, **controls, **common)
    tuned = plan_tuning(arch, devices, config.mesh, slots=1, **alone, **common)
    row["tuned"] = tuned | _verdict(tuned, topology)
    batch = rows * length
    hours = plan_hours(
        row["flops"]["model"] / (row["slots"] * batch), topology, len(devices), slots=row["slots"], batch=batch,
        tokens=tokens, epochs=tuning.control.epochs, use=USE.value, slot_use=SLOT_USE.value, places=row["places"],
        tuned_use=tuned["spread"] / spread,
    )  # fmt: skip
    for part, share in ((row, row["slots"] / row["places"]), (row["tuned"], tuned["spread"] / spread)):
        peak = USE.value * share * len(devices) * chip_flops(topology)
        part["step_seconds"] = part["flops"]["model"] / peak
    return row | {"hours": hours}


def _verdict(row: dict[str, Any], topology: str) -> dict[str, Any]:
    room = min(row.get("room", chip_bytes(topology)), chip_bytes(topology))
    return {"room": room, "fits": row["total"] <= room}


def _print(row: dict[str, Any]) -> None:
    _print_program(row, f"{row['model']} {row['stage']} on {row['topology']} ({row['chips']} chips")
    if row["stage"] == "forward":
        return
    _print_step(row, f"{row['slots']} slots")
    _print_program(row["tuned"], f"{row['model']} {row['stage']}, E, on {row['topology']} ({row['chips']} chips")
    _print_step(row["tuned"], f"E, {row['tuned']['rows']} rows over {row['tuned']['spread']} chips")
    for name, hours in row["hours"].items():
        slots = f", slots used {hours['slot_use']:.3f}" if name == "controls" else ""
        print(
            f"  {name}: {hours['tokens'] / 1e6:.0f} M tokens, {hours['flops']:.2e} FLOPs, "
            f"{hours['chip_hours']:.1f} chip-hours, {hours['hours']:.2f} hours{slots}"
        )


def _print_program(row: dict[str, Any], head: str) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
    attention = row["attention"]
    if row.get("lead"):
        attention += f", {row['lead']} ids once a row"
    print(
        f"{head}, {mesh}, {attention}): "
        f"{row['total'] / 2**30:.2f} GiB a chip of {row['room'] / 2**30:g} "
        f"(base {row['base'] / 2**30:.2f}, arguments {row['arguments'] / 2**30:.2f}, "
        f"temporary {row['temporary'] / 2**30:.2f}), "
        f"{'fits' if row['fits'] else 'DOES NOT FIT'}; compiled in {row['compile_seconds']} s"
    )


def _print_step(row: dict[str, Any], what: str) -> None:
    flops = row["flops"]
    print(
        f"  a step of {what}: {flops['model']:.3e} FLOPs and {flops['recomputed']:.3e} recomputed, "
        f"{row['step_seconds']:.2f} s at use {USE.value:g}"
    )
    if row["collectives"] is None:
        print("  transfers between chips are not known: the program's text cannot be read")
    for found in row["collectives"] or ():
        print(f"  {found['kind']} over {found['axes']}: {found['count']} a step, {found['bytes'] / 1e9:.3f} GB a chip")


def main() -> None:
    """Prints a table per topology."""
    config = _settings()
    if (SHAPE.value and BASE.value) or not (SHAPE.value or config.base != MINIATURE):
        raise Refusal(BAD_CONFIG, "give either --shape or --base, or a --config with a base")
    if SHAPE.value:
        arch, name = architecture_from_config(PUBLISHED[SHAPE.value], SHAPE.value), SHAPE.value
    else:
        arch, name = read_architecture(locate(config.base, config.revision, config_only=True)), config.base
    plan = {"forward": _forward, "tune": _tune}[STAGE.value]
    found = []
    for topology in TOPOLOGY.value:
        devices = topology_devices(topology)
        row = {"model": name, "stage": STAGE.value, "topology": topology, "chips": len(devices)}
        row |= plan(config, arch, name, devices, topology)
        row |= _verdict(row, topology)
        found.append(row)
        _print(row)
    if OUT.value:
        write_json(OUT.value, found)
    print(json.dumps(found))
    remedy = "spread it wider (--fsdp, --tensor, more chips) or give it less at once (--rows, --slots, --models)"
    for row in found:
        what = f"{name} {row['stage']} on {row['topology']}"
        check_fits(what, row["total"], row["room"], remedy)
        if "tuned" in row:
            check_fits(f"{what}, E,", row["tuned"]["total"], row["tuned"]["room"], remedy)


if __name__ == "__main__":
    run(main)
