"""Run by test_peers.py: processes that meet and watch each other, without JAX; forked after one import.

Arguments: a JSON list of scenarios, each {"processes": N, "do": {index: action}} with optional "start_timeout",
"indices", "of", "ranks" (facts) and "signals", and a folder. Every process writes the reason that it gets to
FOLDER/<scenario>-<number>.txt. Prints the exit codes of each scenario, as JSON.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from mossa_jax.errors import Refusal
from mossa_jax.processes import peers as peers_lib
from mossa_jax.processes import rendezvous as processes
from mossa_jax.processes.stop import Stop

peers_lib._GRACE = 1.0
folder = Path(sys.argv[2])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def work(said: Path, what: str, peers: peers_lib.Peers, stop: Stop) -> int:
    """Waits until another process is lost, or ends as `what` says: [wait SECONDS] CODE REASON, abort, or stop."""
    (said.with_suffix(".there")).touch()
    if what.startswith("exchange"):
        _, name, size = what.split()
        values = peers.exchange(name, str(peers._process) * int(size))
        ended = "together" if peers.end(0, "") else "alone"
        said.write_text(f"{ended} {[(value[0], len(value)) for value in values]}")
        return 0
    if what == "abort":
        os.abort()
    if what == "stop":
        with stop.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            what = "0"
    elif what in ("until stopped", "out of time"):
        if what == "out of time":
            stop.ask(is_out_of_time=True)
            stop.pass_on()
        while not stop.asked:
            time.sleep(0.02)
        what = "75 late" if stop.is_out_of_time else "75"
    elif what == "work":
        time.sleep(60)
    seconds, _, what = what.removeprefix("wait ").partition(" ") if what.startswith("wait") else ("0", "", what)
    time.sleep(float(seconds))
    code, _, why = what.partition(" ")
    together = peers.end(int(code), why)
    said.write_text(("together" if together else "alone") + f" {why}" * (why == "late"))
    return int(code)


def process(scenario: dict, place: processes.Place, number: int, said: Path) -> int:
    def lost(code: int, why: str, hangs: bool) -> None:
        said.write_text(f"hangs: {why}" if hangs else why)
        os._exit(code)

    stop = Stop()
    try:
        meet = processes._come if place.process else processes._gather
        facts = {"config": {"rank": scenario.get("ranks", {}).get(str(number), 4)}}
        links = meet(place, scenario.get("start_timeout", 20), stop, facts)
    except Refusal as refusal:
        said.write_text(str(refusal))
        return refusal.code
    return work(said, scenario["do"][str(number)], peers_lib.Peers(place.process, links, 3.0, stop, lost), stop)


def run(name: int, scenario: dict) -> list[int]:
    children, address = [], f"127.0.0.1:{free_port()}"
    for number in map(int, scenario["do"]):
        index = scenario.get("indices", {}).get(str(number), number)
        place = processes.Place(address, scenario.get("of", {}).get(str(number), scenario["processes"]), index)
        if not (child := os.fork()):
            code = 99
            try:
                code = process(scenario, place, number, folder / f"{name}-{number}.txt")
            finally:
                os._exit(code)
        children.append((number, child))
    for number, sent in scenario.get("signals", {}).items():
        while not all((folder / f"{name}-{each}.there").exists() for each, _ in children):
            time.sleep(0.02)
        os.kill(dict(children)[int(number)], getattr(signal, sent))
    codes = {}
    for number, child in children:
        if scenario.get("signals", {}).get(str(number)) != "SIGSTOP":
            codes[number] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, child in children:
        if number not in codes:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            codes[number] = -signal.SIGSTOP
    return [codes[number] for number, _ in children]


running = []
for name, scenario in enumerate(json.loads(sys.argv[1])):  # all at once: they mostly wait
    if not (child := os.fork()):
        (folder / f"{name}.json").write_text(json.dumps(run(name, scenario)))
        os._exit(0)
    running.append(child)
for child in running:
    os.waitpid(child, 0)
print(json.dumps([json.loads((folder / f"{name}.json").read_text()) for name in range(len(running))]))
