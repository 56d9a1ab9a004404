"""Docstring sections headed "Example:" are shown as code, as those headed "Examples:" are."""

import re
from typing import Any

import griffe


class SingularExamples(griffe.Extension):
    """Renames the heading before docstrings are parsed; griffe knows the plural alone."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^(\s*)Example:$", r"\1Examples:", obj.docstring.value)
