"""How the processes of a run come together: who is expected, who is missing, and which devices each one brings.

The processes first meet at the coordinator's port, before JAX uses it. JAX alone would not say who did not come: it
ends those that did by SIGABRT.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from mossa_jax.errors import BAD_CONFIG, LOST_PEER, Refusal
from mossa_jax.log import log
from mossa_jax.processes.peers import BEAT, BEHIND, Link, Peers
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import unlimited

_TELL = 10.0  # seconds between lines that say who is missing
_SILENT = 10.0  # seconds after which what answers in process 0's place is something else
_PCI = Path("/sys/bus/pci/devices")
_GOOGLE, _TPUS = "0x1ae0", ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # v2 to v7


@dataclass(frozen=True)
class Place:
    """One process's place in a run.

    Attributes:
      coordinator: host:port of process 0.
      processes: how many there are.
      process: index of this one.
      devices: the local devices that it takes; None for all.
    """

    coordinator: str
    processes: int
    process: int
    devices: Sequence[int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def choose_platform(platform: str) -> None:
    """Has JAX use a platform and no other; before any other use of it.

    Args:
      platform: `tpu`, `gpu` or `cpu`; "" for what JAX_PLATFORMS says, or what it finds.
    """
    if platform:
        jax.config.update("jax_platforms", platform)


def check_platform() -> None:
    """Starts JAX's backend.

    Raises:
      Refusal: 2 when there is none of the platform that was asked for, or the host has TPUs and JAX does not use them.
    """
    asked = jax.config.jax_platforms or ""
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        if "Unable to initialize backend" not in str(error):
            raise
        raise Refusal(
            BAD_CONFIG,
            f"JAX cannot use {asked!r}, which --platform or JAX_PLATFORMS asks for ({error}); see README, Install",
        ) from None
    if found == "cpu" and "cpu" not in asked.split(",") and has_tpu():
        raise Refusal(
            BAD_CONFIG,
            "this host has TPUs, but JAX found the CPU alone; install mossa_jax[tpu] and end what else uses them, or "
            "give --platform=cpu",
        )


def has_tpu(devices: Path = _PCI) -> bool:
    """Whether this host has TPUs, whatever is installed.

    Args:
      devices: where Linux lists what is plugged in.
    """

    def is_tpu(device: Path) -> bool:
        with contextlib.suppress(OSError):
            return tuple((device / name).read_text().strip() for name in ("vendor", "device")) in known
        return False

    known = {(_GOOGLE, chip) for chip in _TPUS}
    return devices.is_dir() and any(map(is_tpu, devices.iterdir()))


def find_place(processes: int, coordinator: str, process: int, timeout: float) -> Place | None:
    """This process's place, by what was given and what the cluster's environment says; None where it is alone.

    Args:
      processes: how many are expected; 1 for this one alone, 0 to take the environment's word (Cloud TPU, GKE, Slurm,
        Open MPI).
      coordinator: host:port of process 0; "" where the environment says it.
      process: this one's index; -1 where the environment says it.
      timeout: seconds that finding process 0's host may take.

    Raises:
      Refusal: 2 when something is said nowhere, or the environment says another number; 7 when the cluster does not
        answer, or process 0's name does not resolve in time.
    """
    if processes == 1:
        return None
    # There is no public way to ask what `jax.distributed.initialize()` would find.
    from jax._src.clusters import ClusterEnv

    given = coordinator or None, None, process if process >= 0 else None
    try:
        coordinator, count, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            *given, None, None, int(timeout)
        )
    except (RuntimeError, OSError) as error:  # a name that does not resolve yet, a metadata server that is silent
        raise Refusal(
            LOST_PEER,
            f"process 0's address could not be had of the cluster within {timeout:g} s (--start_timeout): {error}; "
            "start again, or name it by --coordinator",
        ) from None
    if processes and count not in (None, processes):
        raise Refusal(
            BAD_CONFIG,
            f"--processes={processes}, but the cluster's environment says {count}; give --processes=0 to take its word",
        )
    values = {"processes": count or processes or None, "coordinator": coordinator, "process": process}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if missing:
        raise Refusal(
            BAD_CONFIG,
            f"--processes={processes}: no cluster's environment says the rest; give {' and '.join(missing)}, or "
            "--processes=1",
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise Refusal(BAD_CONFIG, f"--coordinator={coordinator}: give it as host:port")
    if not 0 <= process < values["processes"]:
        raise Refusal(BAD_CONFIG, f"--process={process}: they are numbered from 0 to {values['processes'] - 1}")
    return Place(coordinator, values["processes"], process, devices)


def join(
    place: Place, start_timeout: float, heartbeat_timeout: float, stop: Stop, lost: Callable[[int, str, bool], None]
) -> Peers:
    """Waits until all processes are there, makes them one run of JAX, and watches them from then on.

    Args:
      place: of this process.
      start_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds without a word after which a process counts as lost.
      stop, lost: as for `Peers`.

    Raises:
      Refusal: 2 when two processes claim one place; 7, naming them, when some do not come; 75 when stopped meanwhile.
    """
    meet = _gather if place.process == 0 else _come
    with unlimited():
        links = meet(place, start_timeout, stop)
    peers = Peers(place.process, links, heartbeat_timeout, stop, lost)
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `Stop`
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.devices,
        initialization_timeout=max(int(start_timeout), 1),
        # JAX beats every half of its time-out: one that dies just before its beat is found that much earlier.
        heartbeat_timeout_seconds=int(2 * (heartbeat_timeout + BEHIND)),
        shutdown_timeout_seconds=int(heartbeat_timeout + BEHIND),
    )
    return peers


def describe(place: Place) -> str:
    """How many processes there are, and the devices of each, for the log."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) == 1:
        each = "1 device each" if counts[0] == 1 else f"{counts[0]} devices each"
    else:
        each = "devices by process: " + ", ".join(f"{process}: {counts[process]}" for process in sorted(counts))
    return f"processes: {len(counts)} of {place.processes} are there, {each} ({jax.devices()[0].device_kind})"


def _gather(place: Place, timeout: float, stop: Stop) -> list[Link]:
    """Process 0: listens until all others have come; its connections to them, in order."""
    deadline = time.monotonic() + timeout
    here: dict[int, Link] = {}
    with _listening(place, deadline, stop) as listener, selectors.DefaultSelector() as selector:
        log.info("processes: waiting for %d others at %s", place.processes - 1, place.coordinator)
        selector.register(listener, selectors.EVENT_READ)
        told = beat = time.monotonic()
        while len(here) < place.processes - 1:
            for key, _ in selector.select(0.1):
                if key.data is None:
                    link = Link(listener.accept()[0])
                    selector.register(link.connection, selectors.EVENT_READ, link)
                elif not _welcome(key.data, here, place):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
            now = time.monotonic()
            missing = [index for index in range(1, place.processes) if index not in here]
            words = f"{len(here) + 1} of {place.processes} are there, missing: {_named(missing)}"
            if stop.asked:
                stop.leave()
            if missing and now > deadline:
                refusal = f"processes: {words}, after {timeout:g} s (--start_timeout); start all, or wait longer"
                for link in here.values():
                    link.send({"lost": refusal, "code": LOST_PEER})
                raise Refusal(LOST_PEER, refusal)
            if now > told + _TELL:
                told = now
                log.info("processes: %s", words)
            if now > beat + BEAT:
                beat = now
                for link in here.values():
                    link.send({"alive": 0})
    return [here[index] for index in sorted(here)]


def _listening(place: Place, deadline: float, stop: Stop) -> socket.socket:
    """The coordinator's port, as soon as nobody else has it: a run that is just ending, perhaps."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", place.address[1]), family=family, backlog=1024, dualstack_ipv6=both)
        except OSError as error:
            if stop.asked:
                stop.leave()
            if time.monotonic() > deadline:
                raise Refusal(
                    BAD_CONFIG, f"--coordinator={place.coordinator}: this port cannot be had ({error}); name another"
                ) from None
            time.sleep(0.2)


def _welcome(link: Link, here: dict[int, Link], place: Place) -> bool:
    """Takes in who says hello; False for one that is gone, or was told why it cannot come."""
    said = link.receive()
    if said is None:
        if here.get(link.process) is link:
            del here[link.process]
        return False
    for hello in said:
        process, why = hello.get("hello"), ""
        if hello.get("of") != place.processes:
            why = f"it is one of {hello.get('of')}, process 0 of {place.processes}; give the same --processes to all"
        elif process in here or process not in range(1, place.processes):
            why = "there is one of this index already; give each its own --process"
        if why:
            link.send({"refused": f"process {process} on {hello.get('host')}: {why}"})
            return False
        link.process, link.host = process, str(hello.get("host"))
        here[process] = link
    return True


def _come(place: Place, timeout: float, stop: Stop) -> list[Link]:
    """Any other process: comes to process 0, and waits for its word that all are there."""
    deadline = time.monotonic() + timeout
    link: Link | None = None
    while True:
        if stop.asked:
            stop.leave()
        if link is None and time.monotonic() > deadline:
            raise Refusal(
                LOST_PEER,
                f"process {place.process} of {place.processes}: process 0 did not answer at {place.coordinator} within "
                f"{timeout:g} s (--start_timeout); start it, or name its address by --coordinator",
            )
        if link is None:
            with contextlib.suppress(OSError):
                link = Link(socket.create_connection(place.address, timeout=5), 0, place.address[0])
                link.send({"hello": place.process, "of": place.processes, "host": socket.gethostname()})
            time.sleep(0.2)
            continue
        said = link.receive()
        if said is None or time.monotonic() - link.heard > _SILENT:
            link.connection.close()  # process 0 is gone, or something else listens there
            link = None
            time.sleep(0.2)
            continue
        for number, message in enumerate(said, 1):
            if "refused" in message:
                raise Refusal(BAD_CONFIG, message["refused"])
            if "lost" in message:
                raise Refusal(message["code"], message["lost"])
            if "ready" in message:
                link.unread = said[number:]
                return [link]
        time.sleep(0.05)


def _named(processes: Sequence[int]) -> str:
    shown = ", ".join(map(str, processes[:16])) + (", ..." if len(processes) > 16 else "")
    return f"process{'es' if len(processes) > 1 else ''} {shown}"
