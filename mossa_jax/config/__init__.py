"""The configuration of a run.

fields.py      every field, with its unit, its default and the default's origin
values.py      what a value may be by the field's type; ranges.py: the range of each
rules.py       what the fields may be, alone and together
data.py        configurations as plain data, for JSON and TOML
sweeps.py      several configurations of one experiment
published.py   the published configs; reading.py: what a config file, a run folder or a published name gives
reference.py   the fields and their meaning as data, for --help and the documentation
"""

from mossa_jax.config.data import config_from_data, config_to_data, with_fields
from mossa_jax.config.fields import (
    DTYPES,
    MINIATURE,
    OPTIMIZERS,
    POOLS,
    PRETRAINED,
    REMAT,
    SELECTIONS,
    TEMPLATES,
    TUNED,
    Analyse,
    Columns,
    Compare,
    Config,
    Mesh,
    Pretraining,
    Schedule,
    Tasks,
    Tokens,
    Tuning,
    recompute,
)
from mossa_jax.config.published import published_configs
from mossa_jax.config.reading import load_config, load_runs
from mossa_jax.config.reference import Field, describe_fields
from mossa_jax.config.rules import check
from mossa_jax.config.sweeps import sweep, varied_fields

__all__ = [
    "DTYPES",
    "MINIATURE",
    "OPTIMIZERS",
    "POOLS",
    "PRETRAINED",
    "REMAT",
    "SELECTIONS",
    "TEMPLATES",
    "TUNED",
    "Analyse",
    "Columns",
    "Compare",
    "Config",
    "Field",
    "Mesh",
    "Pretraining",
    "Schedule",
    "Tasks",
    "Tokens",
    "Tuning",
    "check",
    "config_from_data",
    "config_to_data",
    "describe_fields",
    "load_config",
    "load_runs",
    "published_configs",
    "recompute",
    "sweep",
    "varied_fields",
    "with_fields",
]
