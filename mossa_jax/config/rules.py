"""What the fields of the configuration may be, alone and together."""

import functools
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from mossa_jax.config.fields import REMAT, Config, Target
from mossa_jax.config.values import field_value
from mossa_jax.errors import BAD_CONFIG, Refusal

_LEAST = {
    "seed": 0,
    "tasks.max_train": 1,
    "tasks.max_test": 1,
    "tasks.max_per_cluster": 1,
    "tasks.max_rate": 1,
    "tasks.mixture_rows": 0,
    "tokens.max_tokens": 4,
    "tokens.row_length": 1,
    "tuning.rank": 1,
    "tuning.slots": 1,
    "tuning.seeds": 1,
    "tuning.control_seeds": 1,
    "tuning.skips": 1,
    "tuning.log_every": 1,
    "tuning.checkpoint_every": 1,
    "tuning.snapshots": 0,
    "tuning.control.batch_rows": 1,
    "tuning.experimental.batch_rows": 1,
    "compare.mismatched": 0,
    "compare.permutations": 0,
    "compare.batch_rows": 1,
    "compare.draws": 1,
    "analyse.prompts": 4,
    "analyse.factor_permutations": 1,
    "analyse.factor_prompts": 4,
    "analyse.map_prompts": 2,
    "analyse.map_dimensions": 2,
    "analyse.correlates_prompts": 1,
    "analyse.layers_prompts": 4,
    "analyse.merged_rank": 1,
    "analyse.merged_prompts": 4,
    "analyse.profile_prompts": 2,
    "analyse.profile_layers": 0,
    "analyse.trajectory_prompts": 4,
    "analyse.measures_prompts": 12,
    "analyse.measures_layers": 1,
    "analyse.measures_share": 0,
    "pretraining.layers": 1,
    "pretraining.steps": 1,
}
"""Smallest values of fields."""


def check(config: Config) -> None:
    """Refuses values that could only fail later.

    Raises:
      Refusal: 2, naming the field, its value and what it may be.
    """
    _check_types(config, "")
    for name, least in _LEAST.items():
        _require(config, _value(config, name) >= least, name, f"must be at least {least}")
    _check_tasks(config)
    _check_tokens(config)
    _check_tuning(config)
    _check_compare(config)
    _require(config, config.analyse.merged_scale > 0, "analyse.merged_scale", "must be above 0")


def _value(config: Config, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _require(config: Config, is_good: bool, name: str, rule: str) -> None:
    if not is_good:
        raise Refusal(BAD_CONFIG, f"config.{name}={_value(config, name)!r}: {rule}")


def _check_types(group: Any, above: str) -> None:
    """Checks the value of each field by the field's type."""
    for entry in fields(group):
        value, name = getattr(group, entry.name), f"{above}{entry.name}"
        if is_dataclass(value):
            _check_types(value, f"{name}.")
            continue
        try:
            field_value(entry.type, value)
        except ValueError as error:
            raise Refusal(BAD_CONFIG, f"config.{name}={value!r}: {error}") from None


def _check_tasks(config: Config) -> None:
    tasks, require = config.tasks, functools.partial(_require, config)
    if tasks.suite in ("folder", "natural_instructions"):
        require(bool(tasks.folder), "tasks.folder", f"suite {tasks.suite!r} needs the folder's path")
    if tasks.suite == "hub":
        require(len(tasks.sources) == 1, "tasks.sources", "suite 'hub' needs exactly one data set")
        require(bool(tasks.columns.inputs), "tasks.columns.inputs", "must name a column")
        require(bool(tasks.columns.targets), "tasks.columns.targets", "must name a column")
    require(0 < tasks.test_share < 1, "tasks.test_share", "must be above 0 and below 1")


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
        divides = schedule.parts >= 1 and schedule.batch_rows % schedule.parts == 0
        require(divides, f"tuning.{name}.parts", f"must be at least 1 and divide batch_rows={schedule.batch_rows}")
        require(schedule.epochs > 0, f"tuning.{name}.epochs", "must be above 0")
        require(schedule.learning_rate > 0, f"tuning.{name}.learning_rate", "must be above 0")
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
