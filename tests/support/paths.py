"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""

SHARED = ROOT.parent / "shared"
"""Data and models that lie beside the repository on some machines."""
