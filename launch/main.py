"""What every command shares: flags, logging, and one line and one exit code for every refusal."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from mossa_jax.config import Config
from mossa_jax.errors import BAD_CONFIG, DISK, DONE, INTERNAL, LOST_PEER, STOPPED, Refusal
from mossa_jax.files.cache import keep_compiled
from mossa_jax.files.growing import LogFile
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.log import log
from mossa_jax.monitoring.profiles import Profile
from mossa_jax.processes.peers import Peers
from mossa_jax.processes.rendezvous import check_platform, choose_platform, describe, find_place, join
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import Watchdog
from mossa_jax.run.context import Run
from mossa_jax.run.pipeline import open_run

flags.DEFINE_integer("processes", 1, "Processes of this run; 0 asks the cluster's environment.", lower_bound=0)
flags.DEFINE_string("coordinator", "", "host:port of process 0, where the environment does not say it.")
flags.DEFINE_string("compile_cache", "", "Folder for compiled programs that all runs and hosts share; e.g. gs://...")
flags.DEFINE_integer("process", -1, "Index of this process, where the environment does not say it.")
flags.DEFINE_integer(
    "cpu_devices", 0, "Devices that a CPU counts as: many small models train on as many cores. 0: as JAX says.",
    lower_bound=0,
)  # fmt: skip
flags.DEFINE_float("start_timeout", 300, "Seconds to wait until all processes are there.", lower_bound=1)
flags.DEFINE_float("heartbeat_timeout", 100, "Seconds without a word after which a process is lost.", lower_bound=3)
flags.DEFINE_enum("platform", "", ["", "tpu", "gpu", "cpu"], "What to run on, and nothing else; empty: what JAX finds.")

# What errors of JAX's runtime begin with that another process's end may have caused.
_OF_THE_RUNTIME = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|DATA_LOSS): ")

_LAST_WORDS = 5.0  # seconds that a process takes at most to say why it leaves

_stop = Stop()
_peers: list[Peers] = []  # one, where there are several processes
_run_folders: list[RunFolder] = []  # the one that is open


def run(main: Callable[[], None]) -> None:
    """Runs `main` and ends the process with the exit code that README lists."""
    app.run(lambda argv: sys.exit(_guarded(main)), flags_parser=_parse)


def define_run_flags() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """The flags of the commands that work in a run folder: --config and --workdir."""
    config = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py.")
    workdir = flags.DEFINE_string("workdir", None, "Run folder; the same command again goes on where it was left.")
    text = "Longest time in seconds between two signs of life (a step, a batch, a file read); 0: any."
    flags.DEFINE_float("step_timeout", 1800, text, lower_bound=0)
    flags.mark_flags_as_required(["config", "workdir"])
    return config, workdir


def define_profile_flag() -> flags.FlagHolder:
    """The flag --profile of the commands that tune."""
    return flags.DEFINE_string(
        "profile", "", "Trace so many steps (COUNT or FIRST:COUNT) of each tuning stage into WORKDIR/profile/."
    )


def checked(config: object) -> Config:
    """What --config gave, if it is a configuration.

    Raises:
      Refusal: 2 when it is none.
    """
    if not isinstance(config, Config):
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        raise Refusal(BAD_CONFIG, f"--config={path}: no such file, or its get_config() gives no mossa_jax Config")
    return config


def in_run_folder(config: Config, workdir: str, stage: Callable[[Run], object], profile: str = "") -> object:
    """Claims the folder, sends the log there as well, runs one stage, and gives the folder free."""
    traced = Profile.parse(profile)
    run_folder = open_run(checked(config), workdir)
    _run_folders.append(run_folder)
    handler = None
    if run_folder.writer:
        handler = LogFile(run_folder / "log.txt")
        logging.getLogger("mossa_jax").addHandler(handler)
    try:
        return stage(Run(config, run_folder, _stop, traced))
    finally:
        if handler is not None:
            logging.getLogger("mossa_jax").removeHandler(handler)
            handler.close()
        _run_folders.remove(run_folder)
        run_folder.close()


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
    """Runs `main` as one of the run's processes, and ends together with them."""
    _log_to_console()
    seconds = flags.FLAGS.step_timeout if "step_timeout" in flags.FLAGS else 0
    dog = Watchdog(seconds, _silent) if seconds else None
    code, why = _outcome(main)
    if why:
        print(why, file=sys.stderr, flush=True)
    for peers in _peers:
        if not peers.end(code, _last_line(why)):
            _leave(code)
    if dog is not None:
        dog.close()
    return code


def _outcome(main: Callable[[], None]) -> tuple[int, str]:
    """Joins the other processes and runs `main`; the exit code, and what is to be said of it."""
    # What works in a run folder can stop politely, from here on: devices may take a minute to start.
    polite = _stop.listening() if "workdir" in flags.FLAGS else contextlib.nullcontext()
    try:
        with polite:
            _start()
            main()
    except Refusal as refusal:
        _await_verdict(refusal)
        return refusal.code, f"{'stopped' if refusal.code == STOPPED else 'error'}: {refusal}"
    except Exception as error:
        _await_verdict(error)
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return DISK, f"error: no space left ({error}); free some and run the same command again"
            if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError):
                return BAD_CONFIG, f"error: {error}; name another place"
        return INTERNAL, traceback.format_exc().rstrip()
    return DONE, ""


def _start() -> None:
    """Makes this process one of the run's, on the platform that was asked for."""
    given = flags.FLAGS
    choose_platform(given.platform)
    if given.cpu_devices:
        jax.config.update("jax_num_cpu_devices", given.cpu_devices)
    place = find_place(given.processes, given.coordinator, given.process, given.start_timeout)
    if place is not None:
        _peers.append(join(place, given.start_timeout, given.heartbeat_timeout, _stop, _lost))
    check_platform()
    if given.compile_cache:
        keep_compiled(given.compile_cache)
    if place is not None:
        log.info(describe(place))
    if jax.default_backend() == "cpu":
        _keep_freed_memory()


def _await_verdict(error: BaseException) -> None:
    """Where another process's end may be the cause of an error, waits until that is known."""
    cause: BaseException | None = error
    while _peers and cause is not None:
        if _OF_THE_RUNTIME.match(str(cause)):
            log.warning("%s; waiting to see whether a process is lost", _first_line(cause))
            _peers[0].wait_for_verdict()
            return
        cause = cause.__cause__ or cause.__context__


def _lost(code: int, why: str, hangs: bool) -> None:
    """The run cannot go on without another process; called in a thread, while the main one may hang in a collective."""
    if hangs:
        _end_soon(code)
        _log_stacks()  # whoever noticed first, one of all shows where
    _leave(code, f"error: {why}" + ("; run the same command again to go on" if code == LOST_PEER else ""))


def _silent(why: str) -> None:
    """This process hangs: says where, on the terminal and in the run folder's log."""
    _end_soon(LOST_PEER)
    for peers in _peers:
        peers.announce(LOST_PEER, why)
    _log_stacks()
    _leave(LOST_PEER, f"error: {why}; run the same command again to go on")


def _log_stacks() -> None:
    with tempfile.TemporaryFile("w+") as stacks:
        faulthandler.dump_traceback(stacks)
        stacks.seek(0)
        log.error("stacks of all threads\n%s", stacks.read())


def _leave(code: int, why: str = "") -> None:
    """Ends the process whatever its other threads do, without JAX's own farewell, which waits for all processes."""
    _end_soon(code)
    if why:
        log.error(why)
    for run_folder in _run_folders:  # in an object store its texts are written now and then only
        with contextlib.suppress(Exception):
            run_folder.flush()
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


def _end_soon(code: int) -> None:
    """Ends the process in a few seconds, whatever it does until then: a stream or its lock may hang as well."""
    last = threading.Timer(_LAST_WORDS, os._exit, [code])
    last.daemon = True
    last.start()


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


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _refuse(code: int, message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
