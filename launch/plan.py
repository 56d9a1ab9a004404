"""Plans a run on hardware that is not at hand: memory, hours and cost of each stage.

python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4,v5p:2x2x4 [--price_per_chip_hour=1.2]
python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4 --suggest
python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=h100:8,a100:8x2
python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4 --stage=analyses
python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4 --measured=runs/pilot
python -m launch.plan --prices
python -m launch.plan --shape=llama2-70b --topology=v5p:2x2x4 --stage=forward [--tensor=4]

Programs are compiled as a run would compile them, for TPUs and for NVIDIA GPUs. This needs the extra `plan`, as in `pip
install 'mossa_jax[plan]'`, but no TPU and no GPU. A program takes up to a minute, and its figures are then kept in the
cache. Without a compiler for GPUs they are planned by formula, and the table says so. A second table prices every
analysis beside the comparison, by formula; --stage=analyses gives it alone and compiles nothing. With --config the
sizes are those of a run; its fields are overridden as in --config.mesh.fsdp=4, and the other flags override the config.
A run that does not fit ends with exit code 3 and the bytes that are missing. --nocompile plans by formula alone, in
seconds and without any compiler. --measured=RUN adds a table of hours and money from the times that a finished pilot
measured, with a range, beside those by formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mossa_jax.config import DTYPES, MINIATURE, TEMPLATES, Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning, check
from mossa_jax.errors import BAD_CONFIG, Refusal

from .flags import define_config_flag, require_choice, run
from .path_flags import define_path

if TYPE_CHECKING:
    from mossa_jax.llama.architecture import Architecture

flags.FLAGS.set_default("platform", "cpu")  # --topology names the hardware to compile for; nothing runs
flags.FLAGS.set_default("compile_cache", "none")  # JAX cannot read back programs for devices that are not here

_STAGES = ("all", "tune", "forward", "scores", "similarity", "analyses")

CONFIG = define_config_flag(required=False)
STAGE = flags.DEFINE_enum("stage", None, _STAGES, "Stages to plan; default: all with --config, else forward.")
SUGGEST = flags.DEFINE_bool("suggest", False, "Search for the mesh and the slots that take the fewest hours.")
SHAPE = flags.DEFINE_string("shape", None, "Published model whose shape replaces the config's base, e.g. llama2-7b.")
BASE = define_path("base", "Hugging Face folder or hub id, of which only config.json is read.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id in --base.")
TOPOLOGY = flags.DEFINE_list(
    "topology", ["v5e:4x4"], "TPU slices, as v5e:4x4 or v5p:2x2x4, and GPUs x nodes, as h100:8x2, separated by commas."
)
ADAPTER = flags.DEFINE_integer("adapter", None, "As config.mesh.adapter.")
FSDP = flags.DEFINE_integer("fsdp", None, "As config.mesh.fsdp.")
TENSOR = flags.DEFINE_integer("tensor", None, "As config.mesh.tensor.")
DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "As config.dtype; without --config bfloat16.")
PROMPTS = flags.DEFINE_integer("prompts", 0, "Test prompts per task; 0: tasks.max_test, or 2048 without --config.")
RANK = flags.DEFINE_integer("rank", None, "As config.tuning.rank.")
TARGETS = flags.DEFINE_list("targets", None, "As config.tuning.targets.")
ROWS = flags.DEFINE_integer("rows", None, "Packed rows per step of a control, and per batch of prompts.")
TUNED_ROWS = flags.DEFINE_integer("tuned_rows", None, "Packed rows per step of E.")
ROW_LENGTH = flags.DEFINE_integer("row_length", None, "As config.tokens.row_length.")
SLOTS = flags.DEFINE_integer("slots", None, "As config.tuning.slots; without --config 16.")
ANSWERS = flags.DEFINE_integer("answers", 512, "The most answer tokens in a packed row.")
REMAT = flags.DEFINE_string("remat", None, "As config.tuning.remat.")
PARTS = flags.DEFINE_integer("parts", None, "As config.tuning.control.parts and config.tuning.experimental.parts.")
TEMPLATE = flags.DEFINE_enum("template", None, TEMPLATES, "As config.tokens.template.")
EXAMPLE_IDS = flags.DEFINE_float(
    "example_ids",
    None,
    "Token ids per example, without the template's; not given: 122, which is FLAN's, or with --measured and other "
    "tasks those of the pilot.",
    lower_bound=1,
)
EPOCHS = flags.DEFINE_float("epochs", None, "As config.tuning.control.epochs and config.tuning.experimental.epochs.")
USE = flags.DEFINE_float("use", 0.4, "Share of the chips' bfloat16 peak that is achieved.", lower_bound=1e-6)
PRICE = flags.DEFINE_float(
    "price_per_chip_hour",
    None,
    "Price of a chip or GPU per hour, in any currency; not given: the list price that --prices shows, if there is one.",
    lower_bound=0,
)
PRICES = flags.DEFINE_bool("prices", False, "Print the list prices of chips, and do nothing else.")
COMPILE = flags.DEFINE_bool("compile", True, "Compile programs; --nocompile plans by formula, in seconds.")
MEASURED = define_path(
    "measured", "Folder of a finished run whose measured times are taken to the planned run; see --config."
)
BRIEF = flags.DEFINE_bool("brief", False, "Print one line per topology instead of the tables.")
OUT = define_path("out", "JSON file to write.", output="file")


def _check_flags(values: Mapping[str, Any]) -> bool:
    """Refuses flags that contradict each other, and a pilot that is not there, before anything is imported.

    Args:
      values: of the flags below.

    Raises:
      Refusal: 2.
    """
    pilot = values["measured"]
    if pilot is None:
        for topology in values["topology"]:
            if topology.startswith("cpu:"):
                raise Refusal(
                    BAD_CONFIG, f"--topology={topology}: how fast a CPU is only --measured=RUN says, of a run on it"
                )
        return True
    is_remote = "://" in pilot
    if not pilot or not (is_remote or Path(pilot).is_dir()):
        raise Refusal(BAD_CONFIG, f"--measured={pilot}: no such folder; name the folder of a finished run")
    if not (is_remote or (Path(pilot) / "config.json").is_file()):
        raise Refusal(BAD_CONFIG, f"--measured={pilot}: it has no config.json; name the folder of a finished run")
    if values["config"] is None:
        raise Refusal(BAD_CONFIG, f"--measured={pilot}: give --config, the run that is planned, as well")
    if values["stage"] not in (None, "all"):
        raise Refusal(BAD_CONFIG, f"--measured={pilot}: it plans whole runs; leave --stage={values['stage']} out")
    return True


flags.register_multi_flags_validator(["measured", "config", "stage", "topology"], _check_flags)


def _without_none(**values: flags.FlagHolder) -> dict:
    return {name: flag.value for name, flag in values.items() if flag.value is not None}


def _settings() -> Config:
    """What to plan: --config, or the usual sizes, with the flags that override them."""
    config = CONFIG.value
    if config is None:
        from mossa_jax.tasks.flan_names import CLUSTERS

        config = Config(
            dtype="bfloat16",
            tasks=Tasks(suite="flan2021", max_test=2048, only=CLUSTERS),
            tuning=Tuning(slots=16, control=Schedule(batch_rows=4), experimental=Schedule(batch_rows=16)),
            compare=Compare(batch_rows=16),
            tokens=Tokens(max_tokens=1024),
            mesh=Mesh(-1, 1, 1),
        )
    schedule = _without_none(parts=PARTS, epochs=EPOCHS)
    control = replace(config.tuning.control, **schedule, **_without_none(batch_rows=ROWS))
    experimental = replace(config.tuning.experimental, **schedule, **_without_none(batch_rows=TUNED_ROWS))
    tuning = _without_none(rank=RANK, targets=TARGETS, slots=SLOTS, remat=REMAT)
    tokens = _without_none(row_length=ROW_LENGTH, template=TEMPLATE)
    if ROW_LENGTH.value:
        tokens["max_tokens"] = min(config.tokens.max_tokens, ROW_LENGTH.value)
    config = replace(
        config,
        tuning=replace(config.tuning, control=control, experimental=experimental, **tuning),
        tokens=replace(config.tokens, **tokens),
        compare=replace(config.compare, **_without_none(batch_rows=ROWS)),
        mesh=replace(config.mesh, **_without_none(adapter=ADAPTER, fsdp=FSDP, tensor=TENSOR)),
        **_without_none(base=BASE, dtype=DTYPE),
    )
    check(config)
    return replace(config, revision=REVISION.value) if REVISION.value or BASE.value else config


def _model(config: Config) -> tuple[Architecture, str, bool]:
    """The base model's architecture and name, and whether nothing but its shape is known."""
    from mossa_jax.llama.adapters import check_targets
    from mossa_jax.llama.architecture import architecture_from_config, read_architecture
    from mossa_jax.llama.files.locate import locate
    from mossa_jax.llama.published import PUBLISHED, published_shape

    require_choice(SHAPE, sorted(PUBLISHED))
    if (SHAPE.value and BASE.value) or not (SHAPE.value or config.base != MINIATURE):
        raise Refusal(BAD_CONFIG, "give either --shape or --base, or a --config with a base")
    shape = SHAPE.value or published_shape(config.base)
    if shape:
        return architecture_from_config(PUBLISHED[shape], shape), SHAPE.value or config.base, True
    architecture = read_architecture(locate(config.base, config.revision, config_only=True))
    check_targets(architecture, config.tuning.targets)
    return architecture, config.base, False


def _price(topology: str) -> float:
    """The price of a chip for an hour: the flag's, or else the list price; 0 if there is none."""
    from mossa_jax.planning.prices import list_price

    return list_price(topology) if PRICE.value is None else PRICE.value


def main(_: object) -> None:
    """Prints a table per topology."""
    from mossa_jax.planning.prices import price_lines

    if PRICES.value:
        print(price_lines())
        return
    from mossa_jax.files.write import write_json
    from mossa_jax.planning.analyses import plan_analyses
    from mossa_jax.planning.extrapolate import extrapolate, has_same_chips
    from mossa_jax.planning.forecast import plan_run
    from mossa_jax.planning.hardware import find_hardware, hardware_by_formula
    from mossa_jax.planning.measured import read_measured
    from mossa_jax.planning.measured_table import format_brief, format_forecast
    from mossa_jax.planning.plan_table import format_analyses, format_plan
    from mossa_jax.planning.programs import check_fits
    from mossa_jax.planning.stages import STAGES, PlannedRun
    from mossa_jax.planning.suggest import suggest
    from mossa_jax.planning.workload import count_work

    config = _settings()
    arch, name, shape_alone = _model(config)
    pilot = None if MEASURED.value is None else read_measured(MEASURED.value, ANSWERS.value, USE.value)
    example_ids = EXAMPLE_IDS.value or 122
    if pilot is not None and EXAMPLE_IDS.value is None and config.tasks.suite != "flan2021":
        example_ids = pilot.planned.work.example_ids
    work = count_work(config, example_ids=example_ids, prompts=PROMPTS.value, has_tokenizer=not shape_alone)
    stage = STAGE.value or ("all" if CONFIG.value is not None else "forward")
    groups = {"all": STAGES, "tune": ("E", "controls"), "forward": ("states",), "scores": ("scores", "likelihoods")}
    stages = (groups | {"analyses": ()}).get(stage, (stage,))
    tables = []
    # The speed of a CPU is that of the pilot, and programs are not compiled for it.
    names = [(name, COMPILE.value and not name.startswith("cpu:")) for name in TOPOLOGY.value]
    for hardware in [find_hardware(name) if compiles else hardware_by_formula(name) for name, compiles in names]:
        if pilot is not None:
            has_same_chips(pilot, hardware)
        answers = min(ANSWERS.value, config.tokens.row_length)
        planned, price = PlannedRun(config, arch, name, work, hardware, answers, USE.value), _price(hardware.name)
        if SUGGEST.value:
            planned, text = suggest(planned, stages)
            print(text)
        plan = plan_run(planned, stages, price)
        if stages and not BRIEF.value:
            print(format_plan(plan))
        if stage in ("all", "analyses"):
            plan["analyses"] = plan_analyses(planned, price)
            if not BRIEF.value:
                print(format_analyses(plan))
        if pilot is not None:
            plan["measured"] = extrapolate(pilot, planned, plan, price)
            if not BRIEF.value:
                print(format_forecast(plan))
        if BRIEF.value:
            print(format_brief(plan))
        tables.append(plan)
    if OUT.value:
        write_json(OUT.value, tables)
    remedy = (
        "spread it wider (config.mesh, more chips), give it less at once (tuning.slots, batch_rows, parts), --suggest"
    )
    for plan in tables:
        for row in plan["rows"]:
            subject = f"{plan['config']}, {plan['model']}, {row['stage']} on {plan['topology']}"
            check_fits(subject, row["total"], row["room"], remedy)


if __name__ == "__main__":
    run(main)
