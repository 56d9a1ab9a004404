"""The flags that commands share, their help, and the way from a command line to a process that runs.

Flags are parsed before JAX and the package's rooms are imported: a command line with a mistake is refused at once.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from absl import app, flags
from ml_collections import config_flags

from mossa_jax.config import Config, check, describe_fields, published_configs
from mossa_jax.errors import BAD_CONFIG, DONE, Refusal

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
# Defined by absl, which counts; its words are for programmers.
flags.FLAGS["verbosity"].help = (
    "What the console says: 1 or debug everything, 0 or info the way of the work, -1 or warning only what is wrong, -2 "
    "or error only what ends it. log.txt of a run folder has everything."
)
_VERBOSITY = {"debug": 1, "info": 0, "warning": -1, "error": -2}

flags.DEFINE_enum("platform", "", ["", "tpu", "gpu", "cpu"], "Platform to run on; empty: whatever JAX finds.")


def run(main: Callable[[Process], object]) -> None:
    """Parses the command line, runs `main` as a process of the run, and ends with the exit code that README lists."""
    usage = main.__globals__["__doc__"] or ""
    app.run(lambda argv: sys.exit(_live(main)), flags_parser=partial(_parse, usage))


def define_config_flag(required: bool = True) -> flags.FlagHolder:
    """Defines --config: a file, or the name of a published config."""
    text = "Config file, e.g. configs/demo.py, or the name of a published config, e.g. demo."
    config = config_flags.DEFINE_config_file("config", None, text)
    if required:
        flags.mark_flag_as_required("config")
    return config


def define_run_flags() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines the flags of the commands that work in a run folder, and returns --config and --workdir."""
    config = define_config_flag()
    workdir = flags.DEFINE_string("workdir", None, "Run folder; the same command continues where it stopped.")
    text = "Longest time in seconds between two signs of life (a step, a batch, a file read); 0: no limit."
    flags.DEFINE_float("step_timeout", 1800, text, lower_bound=0)
    flags.mark_flag_as_required("workdir")
    return config, workdir


def define_profile_flag() -> flags.FlagHolder:
    """Defines --profile, of the commands that tune."""
    return flags.DEFINE_string(
        "profile", "", "Steps of each tuning stage to trace into WORKDIR/profile/: COUNT or FIRST:COUNT."
    )


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
        verbosity=values.verbosity,
    )
    return Process(settings, _keep_compiled_programs).run(main)


def _keep_compiled_programs() -> None:
    from mossa_jax.files.compiled import keep_compiled

    keep_compiled(flags.FLAGS.compile_cache)


def _parse(usage: str, argv: Sequence[str]) -> list[str]:
    """Parses the flags and checks the config; every mistake is refused in one line, with exit code 2."""
    if _HELP & set(argv[1:]):
        show(help_text(usage))
        sys.exit(DONE)
    try:
        rest = flags.FLAGS(_resolve(argv))
        if len(rest) > 1:
            _refuse(f"stray word {rest[1]!r} on the command line; values are given as --flag=value")
        _check_config()
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: Flag .* must have a value other than None", str(error))
        _refuse(f"--{missing[1]} is not given; --help lists all flags" if missing else str(error))
    except Refusal as refusal:
        _refuse(str(refusal))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse(f"--config: {_first_line(error)}; fields and their meaning: --help")
    except (OSError, ImportError, SyntaxError) as error:
        _refuse(f"--config: the file cannot be read ({_first_line(error)})")
    return rest


def _resolve(argv: Sequence[str]) -> list[str]:
    """Replaces the name of a published config, as in --config=demo, by its file, and words of --verbosity by numbers.

    It checks the names of files and fields.

    Raises:
      Refusal: 2 for a config that does not exist, or a field that no config has.
    """
    words, files = list(argv), published_configs()
    for index, word in enumerate(words):
        level = re.fullmatch(r"(--?v(?:erbosity)?=)([a-z]+)", word)
        if level and level[2] in _VERBOSITY:
            words[index] = f"{level[1]}{_VERBOSITY[level[2]]}"
        override = re.match(r"--?(?:no)?config\.([\w.]+)", word)
        if override:
            _check_field(override[1])
        match = re.fullmatch(r"(--?config=)?(.*)", word, re.DOTALL)
        is_value = index > 0 and words[index - 1] in ("--config", "-config")
        if match and (match[1] or is_value):
            prefix, name = (match[1], match[2]) if match[1] else ("", word)
            path = files.get(name)
            if path is not None and not Path(name).is_file():
                words[index] = f"{prefix}{path}"
            elif not Path(name.split(":")[0]).is_file():
                raise Refusal(BAD_CONFIG, f"--config={name}: no such file; published configs are {', '.join(files)}")
    return words


def _check_field(name: str) -> None:
    """Refuses a name that is neither a field of a config nor a group of fields."""
    names = [entry.name for entry in describe_fields()]
    if name not in names and not any(known.startswith(f"{name}.") for known in names):
        close = difflib.get_close_matches(name, names, 3)
        hint = f"; there is {' or '.join(close)}" if close else ""
        raise Refusal(BAD_CONFIG, f"--config.{name}: no such field{hint}; --help lists all")


def _check_config() -> None:
    """Checks the value of --config, where a command has this flag and it is given.

    Raises:
      Refusal: 2 when it is no configuration, or one that cannot work.
    """
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    config = flags.FLAGS["config"].value
    if not isinstance(config, Config):
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        raise Refusal(BAD_CONFIG, f"--config={name}: its get_config() returns no mossa_jax Config")
    check(config)


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _refuse(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_CONFIG)
