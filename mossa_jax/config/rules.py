"""What the fields of the configuration may be, alone and together."""

import functools
from dataclasses import is_dataclass
from typing import Any, get_args

from mossa_jax.config.fields import REMAT, Config, Target
from mossa_jax.config.ranges import RANGES, TASK_LISTS, list_problem, text_problem
from mossa_jax.config.values import field_types, field_value
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.foreign import short


def check(config: Config) -> None:
    """Refuses values that could only fail later.

    Raises:
      Refusal: 2, naming the field, its value and what it may be.
    """
    for name, type_ in field_types().items():
        if not is_dataclass(type_) and (problem := _problem(name, type_, _value(config, name))):
            raise Refusal(BAD_CONFIG, f"config.{name}={short(_value(config, name))}: {problem}")
    _check_tasks(config)
    _check_tokens(config)
    _check_tuning(config)
    _check_compare(config)
    _check_pretraining(config)
    for axis in ("adapter", "fsdp", "tensor"):
        _require(config, _value(config, f"mesh.{axis}") != 0, f"mesh.{axis}", "must be at least 1, or -1 for the rest")


def _value(config: Config, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _require(config: Config, is_good: bool, name: str, rule: str) -> None:
    if not is_good:
        raise Refusal(BAD_CONFIG, f"config.{name}={short(_value(config, name))}: {rule}")


def _problem(name: str, type_: Any, value: Any) -> str:
    """Returns what the value of a field must be, by its type and its range; empty if it is that."""
    try:
        value = field_value(type_, value)
    except ValueError as error:
        return str(error)
    if isinstance(value, bool):
        return ""
    if isinstance(value, tuple):
        return list_problem(value, name in TASK_LISTS)
    return text_problem(value) if isinstance(value, str) else RANGES[name].problem(value)


def _check_tasks(config: Config) -> None:
    tasks, require = config.tasks, functools.partial(_require, config)
    if tasks.suite in ("folder", "natural_instructions"):
        require(bool(tasks.folder), "tasks.folder", f"suite {tasks.suite!r} needs the folder's path")
    if tasks.suite == "hub":
        require(len(tasks.sources) == 1, "tasks.sources", "suite 'hub' needs exactly one data set")
        require(bool(tasks.columns.inputs), "tasks.columns.inputs", "must name a column")
        require(bool(tasks.columns.targets), "tasks.columns.targets", "must name a column")


def _check_tokens(config: Config) -> None:
    tokens = config.tokens
    _require(
        config,
        max(tokens.row_length, tokens.long_row_length) >= tokens.max_tokens,
        "tokens.row_length",
        "this or tokens.long_row_length must be at least tokens.max_tokens",
    )
    _require(
        config,
        tokens.long_row_length == 0 or tokens.long_row_length > tokens.row_length,
        "tokens.long_row_length",
        "must be 0 or above tokens.row_length",
    )


def _check_tuning(config: Config) -> None:
    tuning, require = config.tuning, functools.partial(_require, config)
    require(str(tuning.remat).lower() in REMAT, "tuning.remat", "must be auto, on (True) or off (False)")
    require(bool(tuning.targets), "tuning.targets", f"must be some of {', '.join(get_args(Target))}")
    for name, schedule in (("control", tuning.control), ("experimental", tuning.experimental)):
        divides = schedule.batch_rows % schedule.parts == 0
        require(divides, f"tuning.{name}.parts", f"must be at least 1 and divide batch_rows={schedule.batch_rows}")
        if schedule.method == "full":
            only = f"tuning.{name}.method is 'full'"
            require(not tuning.reproducible, "tuning.reproducible", f"only adapters can be reproducible, but {only}")
            require(tuning.snapshots == 0, "tuning.snapshots", f"only adapters are kept on their way, but {only}")
            rule = f"must be 0, since tuning.{name}.method='full' tunes every block"
            require(tuning.first_layer == 0, "tuning.first_layer", rule)
        else:
            require(schedule.optimizer == "adamw", f"tuning.{name}.optimizer", "adapters are tuned by adamw only")


def _check_compare(config: Config) -> None:
    compare, tuning, require = config.compare, config.tuning, functools.partial(_require, config)
    require(
        compare.pool != "all" or compare.engine != "kept", "compare.engine", "the tokens of pool 'all' are never kept"
    )
    is_streamed = compare.engine == "moments" or compare.pool == "all"
    is_full = "full" in (tuning.control.method, tuning.experimental.method)
    rule = "sums are streamed over adapters of one base, not over whole models"
    require(not (is_streamed and is_full), "compare.pool", rule)


def _check_pretraining(config: Config) -> None:
    hidden, heads = config.pretraining.hidden, config.pretraining.heads
    # Rotary positions turn pairs of a head's columns.
    _require(config, hidden % (2 * heads) == 0, "pretraining.hidden", f"must be a multiple of twice heads={heads}")
