"""Config files: those that are published with the package, by name, and what a file gives."""

from __future__ import annotations

import runpy
from os import PathLike
from pathlib import Path

from mossa_jax.config.fields import Config
from mossa_jax.errors import BAD_CONFIG, Refusal

_PACKAGE = Path(__file__).resolve().parents[1]


def published_configs() -> dict[str, Path]:
    """Returns the published configs: name -> file."""
    # In the installed package they are inside of it, in the repository beside it.
    folder = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), None)
    files = [] if folder is None else sorted(folder.glob("*.py"))
    return {path.stem: path for path in files if path.stem != "__init__"}


def load_config(name: str | PathLike[str]) -> Config:
    """Returns the configuration of a config file, or of a published config by its name.

    Args:
      name: a path, or a name such as `demo`. The file is run: it is Python.

    Raises:
      Refusal: 2 if there is no file or it gives no configuration.
    """
    files = published_configs()
    path = Path(name).expanduser()
    if not path.is_file():
        if str(name) not in files:
            raise Refusal(BAD_CONFIG, f"config {name}: no such file; published configs are {', '.join(files)}")
        path = files[str(name)]
    get_config = runpy.run_path(str(path)).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, Config):
        raise Refusal(BAD_CONFIG, f"config {name}: its get_config() returns no mossa_jax Config")
    return config
