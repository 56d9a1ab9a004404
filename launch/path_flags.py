"""Flags that are paths: all commands define them here, so that `~` and variables are filled in once and everywhere."""

from __future__ import annotations

from typing import Any

from absl import flags

from mossa_jax.foreign import user_path
from mossa_jax.outputs import Kind, check_output


class PathParser(flags.ArgumentParser):
    """Returns a path as its user meant it (`foreign.user_path`), and refuses an output that cannot be written.

    Attributes:
      name: of the flag.
      output: what the command writes there; None if it reads.
      words: values that are no paths.
    """

    def __init__(self, name: str, output: Kind | None = None, words: tuple[str, ...] = ()):
        """Takes the attributes."""
        super().__init__()
        self.name, self.output, self.words = name, output, words

    def parse(self, argument: str) -> str:
        """Returns the path.

        Raises:
          Refusal: 2, as `user_path` and `check_output`.
        """
        if argument in self.words:
            return argument
        path = user_path(argument, f"--{self.name}")
        if self.output:
            check_output(path, f"--{self.name}", self.output)
        return path

    def flag_type(self) -> str:
        """Returns what help calls the values."""
        return "string"


def define_path(
    name: str,
    text: str,
    *,
    default: str | None = None,
    output: Kind | None = None,
    words: tuple[str, ...] = (),
    required: bool = False,
) -> flags.FlagHolder:
    """Defines a flag that is a path, or a path or the name of something on the hub.

    Args:
      name: of the flag.
      text: its help.
      default: its value where it is not given.
      output: what the command writes there; None if it reads.
      words: values that are no paths.
      required: whether it has to be given.
    """
    options: dict[str, Any] = {"required": True} if required else {}
    parser = PathParser(name, output, words)
    return flags.DEFINE(parser, name, default, text, serializer=flags.ArgumentSerializer(), **options)


def define_paths(name: str, text: str) -> flags.FlagHolder:
    """Defines a flag whose values are lists of paths, with commas between them; it may be given several times."""
    return flags.DEFINE_multi(_PathsParser(name), flags.ArgumentSerializer(), name, None, text)


class _PathsParser(PathParser):
    """Parses one value of a list of paths; `split_paths` parts it."""

    def parse(self, argument: str) -> Any:
        """Returns the paths; the name of a file may hold a comma."""
        from pathlib import Path

        parse = super().parse
        whole = parse(argument)
        return [whole] if Path(whole).is_file() else [parse(each) for each in argument.split(",")]
