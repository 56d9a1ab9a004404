"""The configuration of a run.

fields.py      every field, with its unit, its default and the default's origin
rules.py       what the fields may be
published.py   the published configs, and what a config file gives
reference.py   the fields and their meaning as data, for --help and the documentation
"""

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
from mossa_jax.config.published import load_config, published_configs
from mossa_jax.config.reference import Field, describe_fields
from mossa_jax.config.rules import check

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
    "describe_fields",
    "load_config",
    "published_configs",
    "recompute",
]
