"""Before you pay: what a run takes on hardware that is not here, stage by stage, in memory, hours and money.

python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4,v5p:2x2x4 [--price_per_chip_hour=1.2]
python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=v5e:4x4 --suggest
python -m launch.plan --config=configs/llama2_7b_flan2021.py --topology=h100:8,a100:8x2
python -m launch.plan --shape=llama2-70b --topology=v5p:2x2x4 --stage=forward [--tensor=4]

Programs for TPU slices are compiled as a run would (needs the package libtpu, no TPU; a minute each, and then kept in
the cache); GPUs are planned by formula. With --config sizes are those of a run, any field of it is overridden as
--config.mesh.fsdp=4, and other flags go first. Exit code 3, with the bytes that are missing, where it does not fit.
"""

from dataclasses import replace

import jax
from absl import flags
from ml_collections import config_flags

from launch.main import checked, run
from mossa_jax import config as config_lib
from mossa_jax.config import MINIATURE, Compare, Config, Mesh, Schedule, Tasks, Tokens, Tuning
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.files.write import write_json
from mossa_jax.llama.architecture import Architecture, architecture_from_config, read_architecture
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.published import PUBLISHED, published_shape
from mossa_jax.planning.forecast import plan_run
from mossa_jax.planning.hardware import find_hardware
from mossa_jax.planning.plan_table import format_plan
from mossa_jax.planning.programs import check_fits
from mossa_jax.planning.stages import STAGES, PlannedRun
from mossa_jax.planning.suggest import suggest
from mossa_jax.planning.workload import count_work
from mossa_jax.tasks.flan_names import CLUSTERS

jax.config.update("jax_platforms", "cpu")  # what is compiled for is named by --topology; nothing runs

_PARTS_OF_A_RUN = {"all": STAGES, "tune": ("E", "controls"), "forward": ("states",)} | {
    name: (name,) for name in ("scores", "similarity")
}

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of a run, whose sizes are taken.")
STAGE = flags.DEFINE_enum("stage", None, [*_PARTS_OF_A_RUN], "Only these; default: all with --config, else forward.")
SUGGEST = flags.DEFINE_bool("suggest", False, "Look for the mesh and slots that take the fewest hours.")
SHAPE = flags.DEFINE_enum("shape", None, sorted(PUBLISHED), "A published model's shape, instead of the config's base.")
BASE = flags.DEFINE_string("base", None, "Hugging Face folder or hub id, of which config.json is read.")
REVISION = flags.DEFINE_string("revision", "", "Revision of a hub id given as --base.")
TOPOLOGY = flags.DEFINE_list(
    "topology", ["v5e:4x4"], "TPU slices, as v5e:4x4 or v5p:2x2x4, and GPUs x nodes, as h100:8x2; separated by commas."
)
ADAPTER = flags.DEFINE_integer("adapter", None, "As config.mesh.adapter.")
FSDP = flags.DEFINE_integer("fsdp", None, "As config.mesh.fsdp.")
TENSOR = flags.DEFINE_integer("tensor", None, "As config.mesh.tensor.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "As config.dtype; without --config bfloat16.")
PROMPTS = flags.DEFINE_integer("prompts", 0, "Test prompts of a task; 0: tasks.max_test, without --config 2048.")
RANK = flags.DEFINE_integer("rank", None, "As config.tuning.rank.")
TARGETS = flags.DEFINE_list("targets", None, "As config.tuning.targets.")
ROWS = flags.DEFINE_integer("rows", None, "Packed rows of a control and step, and of a batch of prompts.")
TUNED_ROWS = flags.DEFINE_integer("tuned_rows", None, "Packed rows of E in a step.")
ROW_LENGTH = flags.DEFINE_integer("row_length", None, "As config.tokens.row_length.")
SLOTS = flags.DEFINE_integer("slots", None, "As config.tuning.slots; without --config 16.")
ANSWERS = flags.DEFINE_integer("answers", 512, "The most answer tokens in a packed row.")
REMAT = flags.DEFINE_string("remat", None, "As config.tuning.remat.")
PARTS = flags.DEFINE_integer("parts", None, "As config.tuning.control.parts and config.tuning.experimental.parts.")
TEMPLATE = flags.DEFINE_enum("template", None, ["none", "llama2", "chat"], "As config.tokens.template.")
EXAMPLE_IDS = flags.DEFINE_float("example_ids", 122, "Ids of an example, prompt and answer, without the template's.")
EPOCHS = flags.DEFINE_float("epochs", None, "As config.tuning.control.epochs and config.tuning.experimental.epochs.")
USE = flags.DEFINE_float("use", 0.4, "Model operations over the chips' peak in bfloat16.", lower_bound=1e-6)
PRICE = flags.DEFINE_float("price_per_chip_hour", 0, "Of a chip or GPU, in any currency.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def _settings() -> Config:
    """What is planned: --config, or the usual sizes; with the flags that are given over it."""
    if CONFIG.value is not None:
        config = checked(CONFIG.value)
        config_lib.check(config)
    else:
        config = Config(
            dtype="bfloat16",
            tasks=Tasks(suite="flan2021", max_test=2048, only=CLUSTERS),
            tuning=Tuning(slots=16, control=Schedule(batch_rows=4), experimental=Schedule(batch_rows=16)),
            compare=Compare(batch_rows=16),
            tokens=Tokens(max_tokens=1024),
            mesh=Mesh(-1, 1, 1),
        )
    given = lambda **named: {name: flag.value for name, flag in named.items() if flag.value is not None}  # noqa: E731
    schedule = given(parts=PARTS, epochs=EPOCHS)
    control = replace(config.tuning.control, **schedule, **given(batch_rows=ROWS))
    experimental = replace(config.tuning.experimental, **schedule, **given(batch_rows=TUNED_ROWS))
    tuning = given(rank=RANK, targets=TARGETS, slots=SLOTS, remat=REMAT)
    tokens = given(row_length=ROW_LENGTH, template=TEMPLATE)
    if ROW_LENGTH.value:
        tokens["max_tokens"] = min(config.tokens.max_tokens, ROW_LENGTH.value)
    config = replace(
        config,
        tuning=replace(config.tuning, control=control, experimental=experimental, **tuning),
        tokens=replace(config.tokens, **tokens),
        compare=replace(config.compare, **given(batch_rows=ROWS)),
        mesh=replace(config.mesh, **given(adapter=ADAPTER, fsdp=FSDP, tensor=TENSOR)),
        **given(base=BASE, dtype=DTYPE),
    )
    config_lib.check(config)
    return replace(config, revision=REVISION.value) if REVISION.value or BASE.value else config


def _model(config: Config) -> tuple[Architecture, str, bool]:
    """The base model's architecture and name, and whether there is no more of it at hand than its shape."""
    if (SHAPE.value and BASE.value) or not (SHAPE.value or config.base != MINIATURE):
        raise Refusal(BAD_CONFIG, "give either --shape or --base, or a --config with a base")
    shape = SHAPE.value or published_shape(config.base)
    if shape:
        return architecture_from_config(PUBLISHED[shape], shape), SHAPE.value or config.base, True
    return read_architecture(locate(config.base, config.revision, config_only=True)), config.base, False


def main() -> None:
    """Prints a table per topology."""
    config = _settings()
    arch, name, shape_alone = _model(config)
    work = count_work(config, example_ids=EXAMPLE_IDS.value, prompts=PROMPTS.value, has_tokenizer=not shape_alone)
    stages = _PARTS_OF_A_RUN[STAGE.value or ("all" if CONFIG.value is not None else "forward")]
    every = [find_hardware(topology) for topology in TOPOLOGY.value]
    found = []
    for hardware in every:
        planned = PlannedRun(config, arch, name, work, hardware, ANSWERS.value, USE.value)
        if SUGGEST.value:
            planned, text = suggest(planned, stages)
            print(text)
        found.append(plan_run(planned, stages, PRICE.value))
        print(format_plan(found[-1]))
    if OUT.value:
        write_json(OUT.value, found)
    remedy = (
        "spread it wider (config.mesh, more chips), give it less at once (tuning.slots, batch_rows, parts), --suggest"
    )
    for made in found:
        for row in made["rows"]:
            what = f"{made['config']}, {made['model']}, {row['stage']} on {made['topology']}"
            check_fits(what, row["total"], row["room"], remedy)


if __name__ == "__main__":
    run(main)
