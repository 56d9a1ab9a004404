"""Sweeps: several configurations of one experiment, and the names of their run folders."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mossa_jax.config.data import config_to_data, with_fields
from mossa_jax.config.fields import Config
from mossa_jax.config.kinds import flat_fields, name_of
from mossa_jax.errors import BAD_CONFIG, Refusal

_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.,=+-]{0,118}[A-Za-z0-9_,=+-])?"


def sweep(base: Config | Callable[[], Config], /, **axes: Any) -> dict[str, Config]:
    """Returns a configuration for every combination of the values of some fields; the last field varies fastest.

    Args:
      base: the configuration that they have in common, or the function that returns it.
      **axes: field -> its values. Dotted names are given as `**{"tuning.rank": (4, 8)}`.

    Returns:
      Name of a run -> its configuration. The name says what is varied, as `tuning.rank=8,seed=1`, and is that of the
      run's folder; it also ends the configuration's `name`, which trackers show.

    Raises:
      Refusal: 2 for a field that does not exist, a value of another type, or one that is given twice.

    Example:
      >>> from mossa_jax.config import load_config, sweep
      >>> list(sweep(load_config("demo"), **{"tuning.rank": (4, 8), "seed": (0, 1)}))[:2]
      ['tuning.rank=4,seed=0', 'tuning.rank=4,seed=1']
    """
    if not axes:
        raise Refusal(BAD_CONFIG, "sweep: no field is varied; give one with its values, as seed=(0, 1)")
    for field, values in axes.items():
        if not isinstance(values, list | tuple | range) or not values:
            raise Refusal(BAD_CONFIG, f"sweep: {field}={values!r}: must be a tuple of one value per run")
    config = base() if callable(base) else base
    runs: dict[str, Config] = {}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        name = name_of(values)
        if name in runs:
            raise Refusal(BAD_CONFIG, f"sweep: the run {name} is there twice; give each value once")
        run = with_fields(config, values, "sweep")
        runs[name] = run if "name" in axes else replace(run, name=f"{config.name} {name}")
    return runs


def check_sweep(runs: Any, where: str) -> dict[str, Config]:
    """Returns the runs of a sweep, checked: at least one, with names that folders can have.

    Raises:
      Refusal: 2 when it is no sweep.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise Refusal(BAD_CONFIG, f"{where}: a sweep is a mapping of at least one run's name to its configuration")
    for name, config in runs.items():
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            rule = "a run's name is that of its folder: up to 120 letters, digits and any of _ . , = + -"
            raise Refusal(BAD_CONFIG, f"{where}: {name!r}: {rule}")
        if not isinstance(config, Config):
            raise Refusal(BAD_CONFIG, f"{where}: the run {name} is no mossa_jax Config")
    of_small: dict[str, str] = {}
    for name in runs:
        if (twin := of_small.setdefault(name.lower(), name)) != name:
            rule = "some file systems do not tell capitals from small letters; rename one of them"
            raise Refusal(BAD_CONFIG, f"{where}: {twin!r} and {name!r}: {rule}")
    return copy.deepcopy(dict(runs))


def varied_fields(runs: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """Returns what tells the runs of a sweep from one another, beside their names.

    Returns:
      Name of each run -> dotted field -> its value there, ready for JSON; the same fields for all runs.
    """
    values = {name: dict(flat_fields(config_to_data(config))) for name, config in runs.items()}
    first = next(iter(values.values()))
    varied = [
        field for field in first if field != "name" and any(one[field] != first[field] for one in values.values())
    ]
    return {name: {field: one[field] for field in varied} for name, one in values.items()}
