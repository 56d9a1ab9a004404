"""What a finished run measured: how long each of its stages took, beside what the formulas say of it.

A pilot is a small run that serves this purpose. `extrapolate` takes its figures to a larger run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from mossa_jax.config import MINIATURE, TUNED, Config
from mossa_jax.config.data import config_from_data
from mossa_jax.devices.chips import GPUS, TPUS, chip_name
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.files.checked import damage
from mossa_jax.files.paths import as_path
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.architecture import Architecture, architecture_from_config, read_architecture
from mossa_jax.llama.files.base import base_can_share_prefix, base_tokenizer
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.published import PUBLISHED, published_shape
from mossa_jax.monitoring.goodput import times
from mossa_jax.planning.forecast import plan_run
from mossa_jax.planning.hardware import Hardware, hardware_by_formula
from mossa_jax.planning.stages import STAGES, PlannedRun
from mossa_jax.planning.workload import Workload
from mossa_jax.tasks.controls import seed_name
from mossa_jax.tuning.pretrain import miniature_architecture

GROUPS = {
    "E": ("E",),
    "controls": ("controls",),
    "score": ("scores", "likelihoods"),
    "compare": ("states", "similarity"),
}
"""Stage of a run, as its metrics name it -> the stages of a plan that it consists of."""

MIN_STEPS = 20
"""The fewest steps of E and of the controls that a speed is taken from."""


@dataclass(frozen=True)
class MeasuredStage:
    """A stage of a finished run.

    Attributes:
      seconds: useful ones: without compiling, loading, saving and what an interruption cost.
      formula_seconds: what the plan of the same work on the same hardware says, at the assumed use.
      share: of the chips' peak that its products achieved; None if the peak is not known.
      drift: how much its second half was slower or faster than its first, as a share; 0 if it has no halves.
    """

    seconds: float
    formula_seconds: float
    share: float | None
    drift: float

    @property
    def factor(self) -> float:
        """How many times as long as by formula it took."""
        return self.seconds / self.formula_seconds


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run, as the measure of another.

    Attributes:
      path: of the run folder.
      planned: the same run as a plan has it.
      stages: the stages in `GROUPS` that it has.
      table: seconds of all its stages by stage, as `goodput.times` has them.
      data_start: useful seconds of the stage `data` before its first task, such as loading the tokenizer.
      outside: seconds in no stage; 0 if there was more than one attempt, for pauses are among them.
    """

    path: str
    planned: PlannedRun
    stages: Mapping[str, MeasuredStage]
    table: Mapping[str, Mapping[str, float]]
    data_start: float
    outside: float

    @property
    def hardware(self) -> Hardware:
        """The devices that it ran on."""
        return self.planned.hardware

    def lost(self, *causes: str) -> float:
        """Returns the seconds that all stages lost to some causes."""
        return sum(stage[cause] for stage in self.table.values() for cause in causes)


def read_measured(path: str, answers: int, use: float) -> MeasuredRun:
    """Reads the run folder of a finished run.

    Args:
      path: of the run folder.
      answers: the most answer tokens in a packed row, assumed as in the plan of the larger run.
      use: the share of the peak that formulas assume.

    Raises:
      Refusal: 2 for a folder that is not there; 3 for one that is no run folder, a run that is not finished or too
        short, and for devices of an unknown kind or not the same number throughout.
    """
    folder = _Folder(path)
    config = config_from_data(folder.read("config.json"), f"--measured={path}: config.json")
    environment, data = folder.read("environment.json"), folder.read("data.json")
    records = folder.records()
    hardware = _hardware_of(environment, records, path)
    arch, name = _architecture(config, path)
    work = _work_of(config, folder, data, arch)
    planned = PlannedRun(config, arch, name, work, hardware, min(answers, config.tokens.row_length), use)
    rows = plan_run(planned, STAGES, 0, compile_programs=False)["rows"]
    table = times(records)
    by_stage = {row["stage"]: row for row in table.to_dict("records")}
    stages = {}
    for stage, parts in GROUPS.items():
        own = [row for row in rows if row["stage"] in parts]
        if own:
            units = own[0]["runs"] if stage in ("E", "controls") else work.tasks
            seconds = _useful_seconds(records, stage, int(units), hardware, path)
            stages[stage] = _measured_stage(records, stage, own, seconds, planned)
    outside = table.attrs["outside"] if table.attempts.max() == 1 else 0.0
    return MeasuredRun(path, planned, stages, by_stage, _start_of(records, "data"), outside)


class _Folder:
    """The files of a run folder, which are only read."""

    def __init__(self, path: str):
        try:
            self.path = as_path(path)
            is_folder = self.path.is_dir()
        except (ImportError, ValueError, OSError) as error:
            raise Refusal(BAD_CONFIG, f"--measured={path}: {error}; name the folder of a finished run") from None
        if not is_folder:
            raise Refusal(BAD_CONFIG, f"--measured={path}: no such folder; name the folder of a finished run")

    def read(self, name: str) -> dict[str, Any]:
        return self._json(self.path / name)

    def models(self) -> dict[str, dict[str, Any]]:
        """Returns the records beside the adapters, by model."""
        found = [self._json(file) for file in sorted(self.path.glob("adapters/*/mossa.json"))]
        return {str(record["model"]): record for record in found}

    def records(self) -> list[dict[str, Any]]:
        return [record for record in RunFolder(self.path, writer=False).metrics() if "stage" in record]

    def _json(self, file: epath.Path) -> dict[str, Any]:
        if (what := damage(file)) is not None and file.exists():
            raise Refusal(BAD_INPUT, f"--measured={self.path}: {what}; name another run")
        try:
            return dict(json.loads(file.read_text()))
        except OSError:
            raise Refusal(
                BAD_INPUT, f"--measured={self.path}: it has no {file.name}; name the folder of a finished run"
            ) from None
        except (TypeError, ValueError):
            raise Refusal(
                BAD_INPUT, f"--measured={self.path}: {file.name} is not the JSON of a run; name another run"
            ) from None


def _hardware_of(environment: Mapping[str, Any], records: Sequence[Mapping[str, Any]], path: str) -> Hardware:
    """Returns the devices that a run had, all attempts on the same number of them."""
    kind, devices = str(environment.get("device")), int(environment.get("devices", 0))
    counts = {record["devices"] for record in records}
    if len(counts) > 1:
        raise Refusal(
            BAD_INPUT,
            f"--measured={path}: its attempts had {', '.join(map(str, sorted(counts)))} devices; name a run that had "
            "the same number throughout",
        )
    if environment.get("platform") == "cpu":
        return hardware_by_formula(f"cpu:{devices}")
    chip = chip_name(kind)
    if chip is None:
        known = ", ".join((*TPUS, *GPUS))
        raise Refusal(BAD_INPUT, f"--measured={path}: it ran on {kind!r}, which plans do not know; they know {known}")
    per_node = devices // max(int(environment.get("processes", 1)), 1)
    if chip in TPUS:
        return hardware_by_formula(f"{chip}:1x{devices}")
    # One process per GPU under Slurm, one for all of a node elsewhere: nodes are not recorded, and matter to transfers.
    return hardware_by_formula(f"{chip}:{devices if per_node == 1 else per_node}")


def _architecture(config: Config, path: str) -> tuple[Architecture, str]:
    """Returns the architecture and the name of a run's base model."""
    if config.base == MINIATURE:
        return miniature_architecture(config.pretraining), "the miniature model"
    if shape := published_shape(config.base):
        return architecture_from_config(PUBLISHED[shape], shape), config.base
    try:
        return read_architecture(locate(config.base, config.revision, config_only=True)), config.base
    except Refusal as refusal:
        raise Refusal(refusal.code, f"--measured={path}: its base model is needed for its sizes: {refusal}") from None


def _work_of(config: Config, folder: _Folder, data: Mapping[str, Any], arch: Architecture) -> Workload:
    """Returns the work that a run had, from what it recorded of its data and its models."""
    models, tasks = folder.models(), data.get("tasks", {})
    experimental = [seed_name(TUNED, number) for number in range(config.tuning.seeds)]
    controls = [name for name in models if name not in experimental]
    if not tasks or set(tasks) - set(controls) or set(experimental) - set(models):
        raise Refusal(
            BAD_INPUT,
            f"--measured={folder.path}: not all its models are tuned; run it to its end, with the same command",
        )
    # One training row at least: a model without steps is refused by its steps.
    examples = max(sum(record["rows"] for record in models.values()), 1)
    packed = sum(record["packed_rows"] for record in models.values()) * config.tokens.row_length
    template = 0 if config.tokens.template == "none" else len(base_tokenizer(config).head)
    prompts = [task["test"]["distinct"] for task in tasks.values()]
    work = Workload(
        controls=tuple(models[name]["rows"] for name in controls),
        mixture=models[TUNED]["rows"],
        experimental_models=len(experimental),
        tasks=len(tasks),
        prompts=max(round(sum(prompts) / len(prompts)), 1),
        example_ids=packed / examples,
        template_ids=template,
        repeated=len({name.rsplit(".", 1)[0] for name in controls if name not in tasks}),
        mixture_tasks=len(models[TUNED]["tasks"]),
        steps_taken={
            "E": tuple(models[name]["steps"] for name in experimental),
            "controls": tuple(models[name]["steps"] for name in controls),
        },
    )
    if work.shared_ids(config, arch) and base_can_share_prefix(config):
        share = 1 - template / config.tokens.row_length
    else:
        share = 1 - template * examples / packed
    return dataclasses.replace(work, example_ids=max(packed / examples * share, 1.0))


def _useful_seconds(
    records: Sequence[Mapping[str, Any]], stage: str, units: int, hardware: Hardware, path: str
) -> float:
    """Returns the useful seconds of a stage over all attempts.

    Args:
      records: of the run's stages.
      stage: one of `GROUPS`.
      units: the steps or tasks that the stage has.
      hardware: that it ran on.
      path: of the run folder.

    Raises:
      Refusal: 3 if the stage is not finished, was not done in this folder, or is too short.
    """
    own = [record for record in records if record["stage"] == stage]
    done = max((record["step"] for record in own), default=0)
    unit = "steps" if stage in ("E", "controls") else "tasks"
    if done < units:
        raise Refusal(
            BAD_INPUT,
            f"--measured={path}: its stage {stage} has done {done} of {units} {unit} here; run it to its end, or name "
            "a run that took nothing over from others",
        )
    if unit == "steps" and units < MIN_STEPS:
        raise Refusal(
            BAD_INPUT,
            f"--measured={path}: {stage} took {units} steps, too few for a speed; give it {MIN_STEPS} or more",
        )
    last = {record["attempt"]: record["useful"] for record in own}
    seconds = sum(last.values())
    if not seconds > 0:
        raise Refusal(BAD_INPUT, f"--measured={path}: its stage {stage} has no useful time; name another run")
    return seconds


def _measured_stage(
    records: Sequence[Mapping[str, Any]], stage: str, rows: Sequence[Mapping[str, Any]], seconds: float, run: PlannedRun
) -> MeasuredStage:
    """Returns a stage's time beside its rows of the plan."""
    is_cpu = run.hardware.name.startswith("cpu")
    flops = sum(row["runs"] * row["flops"] for row in rows)
    share = None if is_cpu else flops / (seconds * run.hardware.chips * run.hardware.peak)
    return MeasuredStage(seconds, sum(row["hours"] for row in rows) * 3600, share, _drift(records, stage))


def _start_of(records: Sequence[Mapping[str, Any]], stage: str) -> float:
    """Returns the useful seconds of a stage before its first unit, which takes as long as the others on average."""
    seconds = 0.0
    for attempt in {record["attempt"] for record in records}:
        own = [record for record in records if record["stage"] == stage and record["attempt"] == attempt]
        if len(own) > 1 and own[-1]["step"] > own[0]["step"]:
            each = (own[-1]["useful"] - own[0]["useful"]) / (own[-1]["step"] - own[0]["step"])
            seconds += max(own[0]["useful"] - own[0]["step"] * each, 0.0)
    return seconds


def _drift(records: Sequence[Mapping[str, Any]], stage: str) -> float:
    """Returns by how much a unit took more or less time in the second half of a stage than in the first, as a share."""
    rates = []
    previous: Mapping[str, Any] | None = None
    for record in records:
        if record["stage"] != stage:
            continue
        if previous is not None and record["attempt"] == previous["attempt"] and record["step"] > previous["step"]:
            units = record["step"] - previous["step"]
            rates.append(((record["useful"] - previous["useful"]) / units, units))
        previous = record
    halves = [rates[: len(rates) // 2], rates[len(rates) // 2 :]]
    if not all(halves):
        return 0.0
    first, second = (sum(rate * units for rate, units in half) / sum(units for _, units in half) for half in halves)
    return abs(second - first) / max(first, second, 1e-9)
