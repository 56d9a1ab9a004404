"""The flags that commands share, their help, and the way from a command line to a process that runs.

Flags are parsed before JAX and the package's rooms are imported: a command line with a mistake is refused at once.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn

from absl import app, flags
from ml_collections import config_flags

from mossa_jax.config import describe_fields
from mossa_jax.errors import BAD_CONFIG, DONE, Refusal
from mossa_jax.run.options import STALE, Options

from .config_source import ConfigSource, check_takeover, config_text, settle_config, with_config_of_workdir
from .help import help_text, show

if TYPE_CHECKING:
    from mossa_jax.processes.life import Process

_HELP = {"--help", "-help", "--helpshort", "-h", "-?"}

# Fields with a choice of words are overridden by any string; `config.check` then says what they may be.
config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())

flags.DEFINE_integer("processes", 1, "Number of processes; 0 asks the cluster's environment.", lower_bound=0)
flags.DEFINE_string("coordinator", "", "host:port of process 0, unless the environment says it.")
flags.DEFINE_string(
    "compile_cache",
    "",
    "Folder that keeps compiled programs for later runs and for all hosts, e.g. gs://...; empty: in MOSSA_CACHE, at "
    "most 2 GiB; none: keeps none.",
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
flags.DEFINE_enum("platform", "", ["", "tpu", "gpu", "cpu"], "Platform to run on; empty: whatever JAX finds.")


def run(main: Callable[[Process], object]) -> None:
    """Parses the command line, runs `main` as a process of the run, and ends with the exit code that README lists."""
    usage = main.__globals__["__doc__"] or ""
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
    flags.DEFINE_string("overrides", None, text)
    text = "Print the configuration, with all overrides, as JSON that --config takes, and do nothing else."
    flags.DEFINE_bool("print_config", False, text)
    if required:
        flags.mark_flag_as_required("config")
    return config


def define_run_flags(sweeps: bool = False) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines the flags of the commands that work in a run folder, and returns --config and --workdir."""
    config = define_config_flag(required=False, sweeps=sweeps)
    workdir = flags.DEFINE_string(
        "workdir",
        None,
        "Run folder. The same command continues where it stopped; without --config, with the configuration that the "
        "folder has.",
    )
    text = "Longest time in seconds between two signs of life (a step, a batch, a file read); 0: no limit."
    flags.DEFINE_float("step_timeout", 1800, text, lower_bound=0)
    return config, workdir


def define_tuning_flags() -> flags.FlagHolder:
    """Defines the flags of the commands that tune, and returns --profile; `attempt_options` reads the others."""
    flags.DEFINE_string(
        "from", None, "Run folder whose models and results are taken over where they rest on the same things."
    )
    text = (
        "Models that rest on other rows than the run's: refuse them, retrain them, or keep E as it is and count tasks "
        "that came as unseen."
    )
    flags.DEFINE_enum("stale", "refuse", STALE, text)
    return flags.DEFINE_string(
        "profile", "", "Steps of each tuning stage to trace into WORKDIR/profile/: COUNT or FIRST:COUNT."
    )


def attempt_options() -> Options:
    """Returns what the flags of `define_tuning_flags` ask for."""
    values = flags.FLAGS
    source = values["from"].value
    take_from = check_takeover(source, values["workdir"].value) if source is not None else ""
    return Options(take_from=take_from, stale=values["stale"].value)


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
    from mossa_jax.processes.life import Process, Settings

    values = flags.FLAGS
    settings = Settings(
        platform=values.platform,
        cpu_devices=values.cpu_devices,
        processes=values.processes,
        coordinator=values.coordinator,
        process=values.process,
        start_timeout=values.start_timeout,
        heartbeat_timeout=values.heartbeat_timeout,
        step_timeout=values["step_timeout"].value if "step_timeout" in values else 0,
        stops_on_request="workdir" in values,
    )
    return Process(settings, _keep_compiled_programs).run(main)


def _keep_compiled_programs() -> None:
    from mossa_jax.files.compiled import keep_compiled

    keep_compiled(flags.FLAGS.compile_cache)


def _parse(usage: str, argv: Sequence[str]) -> list[str]:
    """Parses the flags and checks the config; every mistake is refused in one line, with exit code 2.

    With --print_config it prints the configuration, and the command ends.
    """
    if _HELP & set(argv[1:]):
        show(help_text(usage))
        sys.exit(DONE)
    try:
        words = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        _check_fields(words)
        rest = flags.FLAGS(with_config_of_workdir(words))
        if len(rest) > 1:
            _refuse(f"stray word {rest[1]!r} on the command line; values are given as --flag=value")
        _check_values()
    except flags.Error as error:
        # absl shows a tuple for a word that is no boolean.
        text = re.sub(r"\('Non-boolean argument to boolean flag', .*\)", "must be true or false", str(error))
        missing = re.match(r"flag --(\w+)=None: Flag .* must have a value other than None", text)
        _refuse(f"--{missing[1]} is not given; --help lists all flags" if missing else text)
    except Refusal as refusal:
        _refuse(str(refusal), refusal.code)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse(f"--config: {_first_line(error)}; fields and their meaning: --help")
    except OSError as error:
        _refuse(f"--config: the file cannot be read ({_first_line(error)})")
    if "print_config" in flags.FLAGS and flags.FLAGS.print_config:
        show(config_text())
        sys.exit(DONE)
    return rest


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


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _refuse(message: str, code: int = BAD_CONFIG) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
