"""Signals: one asks a run for a polite stop, a second ends it at once; any other command ends at the first."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.processes import cpu

# Says that it works, and then is for minutes in native code that Python cannot interrupt.
BUSY = """
import hashlib, sys, time
from launch import end_on_interrupt
from mossa_jax.processes.life import Process, Settings

def work(process):
    print("working", flush=True)
    if sys.argv[1] == "native":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    while not process.stop.asked:
        time.sleep(0.01)
    time.sleep(0.5)
    process.stop.leave()

end_on_interrupt()
sys.exit(Process(Settings(platform="cpu", stops_on_request=sys.argv[2] == "stops")).run(work))
"""


def busy(root, where, kind, *sent, before=""):
    environment = cpu(root, 1) | {"BUSY": BUSY}
    command = f'{before} exec "{sys.executable}" -c "$BUSY" {where} {kind}'
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whoever runs the tests may ignore it
    ) as process:
        try:
            assert process.stdout.readline() == "working\n"
            for each in sent:
                os.kill(process.pid, each)
                # Two that come at the same time count once.
                time.sleep(0.2)
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    return process.returncode, said


def test_ctrl_c_ends_a_command_without_a_run_folder_at_once(root):
    assert busy(root, "native", "ends", signal.SIGINT) == (-signal.SIGINT, "")


@pytest.mark.parametrize("sent", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])
def test_one_signal_is_a_polite_stop_and_a_terminal_that_closes_sends_two(root, sent):
    code, said = busy(root, "Python", "stops", *sent)
    assert code == 75 and "stopped on request, state saved" in said


def test_a_second_ctrl_c_ends_at_once_even_in_native_code(root):
    assert busy(root, "native", "stops", signal.SIGINT, signal.SIGINT)[0] == -signal.SIGINT


def test_a_hangup_that_is_ignored_stays_so(root):
    code, said = busy(root, "Python", "stops", signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, before="trap '' HUP;")
    assert code == 75 and "state saved" in said
