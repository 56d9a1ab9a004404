"""The flags that commands share, their help, and the way from a command line to a process that runs.

Flags are parsed before JAX and the package's rooms are imported: a command line with a mistake is refused at once.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn

from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from mossa_jax.config import describe_fields
from mossa_jax.errors import BAD_CONFIG, DONE, Refusal
from mossa_jax.foreign import short
from mossa_jax.processes.failures import explain, first_line
from mossa_jax.processes.streams import settle_streams
from mossa_jax.run.options import STALE, Options

from . import end_on_interrupt
from .config_source import ConfigSource, check_takeover, config_text, settle_config, with_config_of_workdir
from .facts import command_facts
from .help import help_text, show
from .path_flags import define_path

if TYPE_CHECKING:
    from mossa_jax.processes.life import Process
    from mossa_jax.run.options import Options

_HELP = {"--help", "-help", "--helpshort", "-h", "-?"}


@dataclass(frozen=True)
class _Words:
    """The words that a command takes beside its flags."""

    name: str
    least: int
    check: Callable[[list[str]], None]
    values: list[str]

    def take(self, words: list[str]) -> None:
        """Refuses words that the command does not take, and keeps the others."""
        if len(words) < self.least:
            missing = " ".join([self.name] * self.least)
            raise Refusal(BAD_CONFIG, f"{len(words)} of at least {self.least} words given: {missing}; see --help")
        self.check(words)
        self.values[:] = words


def _take_none(words: list[str]) -> None:
    if words:
        raise Refusal(BAD_CONFIG, f"stray word {words[0]!r} on the command line; values are given as --flag=value")


_words = _Words("", 0, _take_none, [])

# Fields with a choice of words are overridden by any string; `config.check` then says what they may be.
config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())


class _ListParser(tuple_parser.TupleParser):
    """Parses the list of a field: `a,b`, or as Python writes it, `("a", "b")`, which a name with a comma needs."""

    def parse(self, argument: object) -> tuple:
        """Returns the entries.

        Raises:
          ValueError: it begins as Python's lists do and is none.
        """
        text = argument.strip() if isinstance(argument, str) else ""
        if not text or text.startswith(("(", "[", "'", '"')):
            try:
                return () if argument == "" else super().parse(argument)
            except (MemoryError, RecursionError, TypeError):
                raise ValueError(f"{short(argument)} is no list; write a,b") from None
        return tuple(word.strip() for word in text.split(","))


config_flags.register_flag_parser_for_type(tuple, _ListParser())

flags.DEFINE_integer("processes", 1, "Number of processes; 0 asks the cluster's environment.", lower_bound=0)
flags.DEFINE_string("coordinator", "", "host:port of process 0, unless the environment says it.")
define_path(
    "compile_cache",
    "Folder that keeps compiled programs for later runs and for all hosts, e.g. gs://...; empty: in MOSSA_CACHE, at "
    "most 2 GiB; none: keeps none.",
    default="",
    words=("", "none"),
)
flags.DEFINE_integer("process", -1, "Index of this process, unless the environment says it.")
flags.DEFINE_integer(
    "cpu_devices",
    0,
    "Devices that a CPU counts as: many small models train on as many cores. 0 leaves this to JAX.",
    lower_bound=0,
)
flags.DEFINE_float("start_timeout", 300, "Seconds to wait until all processes have joined.", lower_bound=1)
flags.DEFINE_float("heartbeat_timeout", 100, "Seconds of silence after which a process counts as lost.", lower_bound=3)
# Defined by absl, which counts; its words are for programmers.
flags.FLAGS["verbosity"].help = (
    "What the console says: 1 or debug everything, 0 or info the way of the work, -1 or warning only what is wrong, -2 "
    "or error only what ends it. log.txt of a run folder has everything."
)
_VERBOSITY = {"debug": 1, "info": 0, "warning": -1, "error": -2}

flags.DEFINE_enum("platform", "", ["", "tpu", "gpu", "cpu"], "Platform to run on; empty: whatever JAX finds.")


class _HoursParser(flags.FloatParser):
    """Parses a positive number of hours; a year is the most."""

    def parse(self, argument: float | int | str) -> float:
        """Returns the hours.

        Raises:
          ValueError: for anything else.
        """
        try:
            hours = float(argument)
        except ValueError:
            hours = 0.0
        # NaN fails both comparisons.
        if not 0 < hours <= 8760:
            raise ValueError("give hours above 0 (8760 at most), as in 8 or 0.5, or leave it out for no limit")
        return hours


def run(main: Callable[[Process], object]) -> None:
    """Parses the command line, runs `main` as a process of the run, and ends with the exit code that README lists."""
    usage = main.__globals__["__doc__"] or ""
    end_on_interrupt()
    settle_streams()
    # Commands draw into files; a notebook's cells name a backend that may not be installed.
    os.environ["MPLBACKEND"] = "agg"
    app.run(lambda argv: sys.exit(_live(main)), flags_parser=partial(_parse, usage))


def define_config_flag(required: bool = True, sweeps: bool = False) -> flags.FlagHolder:
    """Defines --config and what changes or shows the configuration.

    Args:
      required: whether the command needs --config.
      sweeps: whether the command runs sweeps (`config_source.runs_of_sweep`).
    """
    text = (
        "Python file with get_config(), JSON or TOML file of fields, run folder, or the name of a published config, "
        "e.g. demo."
    )
    config = config_flags.DEFINE_config_file("config", None, text)
    flags.FLAGS["config"].parser = ConfigSource(sweeps)
    text = "TOML or JSON file with values of fields; those of the command line, as in --config.seed=1, win."
    define_path("overrides", text)
    text = "Print the configuration, with all overrides, as JSON that --config takes, and do nothing else."
    flags.DEFINE_bool("print_config", False, text)
    if required:
        flags.mark_flag_as_required("config")
    return config


def define_run_flags(sweeps: bool = False) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines the flags of the commands that work in a run folder, and returns --config and --workdir."""
    config = define_config_flag(required=False, sweeps=sweeps)
    workdir = define_path(
        "workdir",
        "Run folder. The same command continues where it stopped; without --config, with the configuration that the "
        "folder has.",
        output="folder",
    )
    text = "Longest time in seconds between two signs of life (a step, a batch, a file read); 0: no limit."
    flags.DEFINE_float("step_timeout", 1800, text, lower_bound=0)
    text = (
        "Hours after which the command saves its state and ends with exit code 75, as on SIGTERM. They count from the "
        "start of the process (of process 0, if there are several), imports and waiting for the others included, and "
        "for this attempt alone: not what earlier ones took. Work that cannot be saved halfway, such as a compilation, "
        "is finished first. Not given: no limit."
    )
    flags.DEFINE(_HoursParser(), "max_hours", None, text, serializer=flags.ArgumentSerializer())
    return config, workdir


def define_tuning_flags() -> flags.FlagHolder:
    """Defines the flags of the commands that tune, and returns --profile; `attempt_options` reads the others."""
    define_path("from", "Run folder whose models and results are taken over where they rest on the same things.")
    text = (
        "Models that were tuned on other rows than the run has today, as tasks came, went or changed: refuse them, "
        "retrain them, or keep E as it is and count the tasks that came as unseen."
    )
    flags.DEFINE_enum("stale", "refuse", STALE, text)
    return flags.DEFINE_string(
        "profile", "", "Steps of each tuning stage to trace into WORKDIR/profile/: COUNT or FIRST:COUNT."
    )


def attempt_options() -> Options:
    """Returns what the flags of `define_tuning_flags` ask for."""
    values = flags.FLAGS
    source, stale = values["from"].value, str(values["stale"].value)
    take_from = check_takeover(source, values["workdir"].value) if source else ""
    return Options(take_from=take_from, stale=stale)


def define_words(name: str, least: int, check: Callable[[list[str]], None]) -> list[str]:
    """Lets a command take words beside its flags, such as paths.

    Args:
      name: what a word is, for messages.
      least: the fewest words.
      check: called with the words before anything heavy is imported; refuses those that cannot be.

    Returns:
      The words, filled in when the command line is parsed.
    """
    global _words
    _words = _Words(name, least, check, [])
    return _words.values


def require_choice(flag: flags.FlagHolder, choices: Sequence[str]) -> None:
    """Refuses a value of a flag that is not among the choices; for choices that are slow to import.

    Raises:
      Refusal: 2, with the choices.
    """
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    if any(value is not None and value not in choices for value in values):
        raise Refusal(BAD_CONFIG, f"--{flag.name}={','.join(values)}: must be among {', '.join(choices)}")


def _live(main: Callable[[Process], object]) -> int:
    """Runs `main` in a process with the settings of the shared flags."""
    try:
        from mossa_jax.files.paths import keep_caches_together
        from mossa_jax.processes.life import Process, Settings
    except ImportError as error:
        if (refusal := explain(error)) is None:
            raise
        _refuse(str(refusal), refusal.code)

    keep_caches_together()
    values = flags.FLAGS
    settings = Settings(
        platform=values.platform,
        cpu_devices=values.cpu_devices,
        processes=values.processes,
        coordinator=values.coordinator,
        process=values.process,
        start_timeout=values.start_timeout,
        heartbeat_timeout=values.heartbeat_timeout,
        step_timeout=(values["step_timeout"].value or 0) if "step_timeout" in values else 0,
        stops_on_request="workdir" in values,
        max_hours=(values["max_hours"].value or 0) if "max_hours" in values else 0,
        verbosity=values.verbosity,
    )
    command = main.__globals__.get("__spec__")
    name = command.name if command is not None else main.__module__
    return Process(settings, _keep_compiled_programs, partial(command_facts, name.rpartition(".")[2])).run(main)


def _keep_compiled_programs() -> None:
    from mossa_jax.files.compiled import keep_compiled

    keep_compiled(flags.FLAGS.compile_cache)


def _parse(usage: str, argv: Sequence[str]) -> list[str]:
    """Parses the flags and checks the config; every mistake is refused in one line, with exit code 2.

    With --print_config it prints the configuration, and the command ends.
    """
    try:
        if _HELP & set(argv[1:]):
            show(help_text(usage))
            sys.exit(DONE)
        words = [_in_numbers(word) for word in flags.FLAGS.read_flags_from_files(argv, force_gnu=False)]
        _check_fields(words)
        rest = flags.FLAGS(with_config_of_workdir(words))
        _words.take(rest[1:])
        _check_values()
        if "print_config" in flags.FLAGS and flags.FLAGS.print_config:
            show(config_text())
            sys.exit(DONE)
    except flags.Error as error:
        # absl shows a tuple for a word that is no boolean.
        text = re.sub(r"\('Non-boolean argument to boolean flag', .*\)", "must be true or false", str(error))
        missing = re.match(r"flag --(\w+)=None: Flag .* must have a value other than None", text)
        _refuse(f"--{missing[1]} is not given; --help lists all flags" if missing else text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse(f"--config: {first_line(error)}; fields and their meaning: --help")
    except Exception as error:
        if (refusal := explain(error)) is None:
            raise
        _refuse(str(refusal), refusal.code)
    return rest


def _in_numbers(word: str) -> str:
    """Returns a word of the command line, with the level of --verbosity as absl takes it."""
    level = re.fullmatch(r"(--?v(?:erbosity)?=)([a-z]+)", word)
    return f"{level[1]}{_VERBOSITY[level[2]]}" if level and level[2] in _VERBOSITY else word


def _check_fields(words: Sequence[str]) -> None:
    """Refuses names that are neither fields of a config nor groups of fields."""
    names = [entry.name for entry in describe_fields()]
    for word in words:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", word)
        name = match[1] if match else ""
        if name and name not in names and not any(known.startswith(f"{name}.") for known in names):
            close = difflib.get_close_matches(name, names, 3)
            hint = f"; there is {' or '.join(close)}" if close else ""
            raise Refusal(BAD_CONFIG, f"--config.{name}: no such field{hint}; --help lists all")


def _check_values() -> None:
    """Checks what the flags say together, and the configuration.

    Raises:
      Refusal: 2 for a flag that is missing, a value that cannot work, or --from that names no run.
    """
    values = flags.FLAGS
    if "config" not in values:
        return
    works_in_folder = "workdir" in values
    if works_in_folder and not values.workdir and not values.print_config:
        raise Refusal(BAD_CONFIG, "--workdir is not given; --help lists all flags")
    if (works_in_folder or values.print_config) and values["config"].value is None:
        raise Refusal(BAD_CONFIG, "--config is not given; --help lists all flags")
    settle_config()
    if "from" in values:
        attempt_options()


def _refuse(message: str, code: int = BAD_CONFIG) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
