"""What every command shares: flags, logging, and one line and one exit code for every refusal."""

from __future__ import annotations

import ctypes
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from mossa_jax.cache import keep_compiled
from mossa_jax.config import Config
from mossa_jax.experiment import Bench, open_run
from mossa_jax.mesh import start_processes
from mossa_jax.progress import Stop
from mossa_jax.rundir import BAD_CONFIG, DISK, DONE, INTERNAL, LogFile, Refusal

flags.DEFINE_integer("processes", 1, "Processes of this run; 0 asks the cluster's environment.")
flags.DEFINE_string("coordinator", "", "host:port of process 0, where the environment does not say it.")
flags.DEFINE_string("compile_cache", "", "Folder for compiled programs that all runs and hosts share; e.g. gs://...")
flags.DEFINE_integer("process", -1, "Index of this process, where the environment does not say it.")


def run(main: Callable[[], None]) -> None:
    """Runs `main` and ends the process with the exit code that README lists."""
    app.run(lambda argv: sys.exit(_guarded(main)), flags_parser=_parse)


def define_run_flags() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """The flags of the commands that work in a run folder: --config and --workdir."""
    config = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py.")
    workdir = flags.DEFINE_string("workdir", None, "Run folder; the same command again goes on where it was left.")
    flags.mark_flags_as_required(["config", "workdir"])
    return config, workdir


def checked(config: object) -> Config:
    """What --config gave, if it is a configuration.

    Raises:
      Refusal: 2 when it is none.
    """
    if not isinstance(config, Config):
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        raise Refusal(BAD_CONFIG, f"--config={path}: no such file, or its get_config() gives no mossa_jax Config")
    return config


def in_run_folder(config: Config, workdir: str, stage: Callable[[Bench], object]) -> object:
    """Claims the folder, sends the log there as well, runs one stage, and gives the folder free."""
    rundir = open_run(checked(config), workdir)
    handler = None
    if rundir.writer:
        handler = LogFile(rundir / "log.txt")
        logging.getLogger("mossa_jax").addHandler(handler)
    try:
        with Stop().listening() as stop:
            return stage(Bench(config, rundir, stop))
    finally:
        if handler is not None:
            logging.getLogger("mossa_jax").removeHandler(handler)
            handler.close()
        rundir.close()


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; whatever is wrong with them is one line and exit code 2."""
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        _refuse(BAD_CONFIG, str(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse(BAD_CONFIG, f"--config: {_first_line(error)}; fields and their meaning are in mossa_jax/config.py")
    except (OSError, ImportError, SyntaxError) as error:
        _refuse(BAD_CONFIG, f"--config: the file cannot be read ({_first_line(error)})")
    if len(rest) > 1:
        _refuse(BAD_CONFIG, f"stray word {rest[1]!r} on the command line; values are given as --flag=value")
    return rest


def _guarded(main: Callable[[], None]) -> int:
    _log_to_console()
    try:
        start_processes(flags.FLAGS.processes, flags.FLAGS.coordinator, flags.FLAGS.process)
        if flags.FLAGS.compile_cache:
            keep_compiled(flags.FLAGS.compile_cache)
        if jax.default_backend() == "cpu":
            _keep_freed_memory()
        main()
    except Refusal as refusal:
        print(f"{'stopped' if refusal.code == 75 else 'error'}: {refusal}", file=sys.stderr)
        return refusal.code
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: no space left ({error}); free some and run the same command again", file=sys.stderr)
            return DISK
        if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
            print(f"error: {error}; name another place", file=sys.stderr)
            return BAD_CONFIG
        traceback.print_exc()
        return INTERNAL
    except Exception:
        traceback.print_exc()
        return INTERNAL
    return DONE


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: XLA's CPU backend allocates every temporary anew, and fresh pages from the
    kernel cost a third of a step on small models (BUILD_NOTES.md). Does nothing where there is no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def _log_to_console() -> None:
    """Plain lines on standard error; only our own, and warnings of others."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.use_python_logging(quiet=True)
    log = logging.getLogger("mossa_jax")
    log.setLevel(logging.INFO)
    log.propagate = False
    # What a library cannot do in its own threads comes to us as an error, too, and is said in one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: record.exc_info is None)
    # Nor does anybody wait any more for what TensorStore's threads say of the rest of a write that failed.
    hook = sys.unraisablehook
    sys.unraisablehook = lambda failure: str(failure.exc_value) == "Event loop is closed" or hook(failure)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.addHandler(handler)


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _refuse(code: int, message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
