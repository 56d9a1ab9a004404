"""The config files that are published with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def published_configs() -> dict[str, Path]:
    """Returns the published configs: name -> file."""
    # In the installed package they are inside of it, in the repository beside it.
    folder = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), None)
    files = [] if folder is None else sorted(folder.glob("*.py"))
    return {path.stem: path for path in files if path.stem != "__init__"}
