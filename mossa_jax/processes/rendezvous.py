"""How the processes of a run meet: which are expected, which are missing, and which devices each has.

The processes first meet at the coordinator's port, before JAX uses it. JAX alone would not say which process is
missing: it ends all others by SIGABRT.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from mossa_jax.errors import BAD_CONFIG, LOST_PEER, Refusal
from mossa_jax.log import log
from mossa_jax.processes.drivers import is_for_planning_only, without_complaints
from mossa_jax.processes.facts import Facts, difference
from mossa_jax.processes.peers import BEAT, BEHIND, EndProcess, Link, Peers
from mossa_jax.processes.stop import Stop
from mossa_jax.processes.watchdog import unlimited

_REPORT = 10.0  # seconds between lines that say which processes are missing
_LATE = 5.0  # seconds that the others have to come after one that differs from process 0
_SILENT = 10.0  # seconds of silence after which something else than process 0 must be listening at its address
_PCI = Path("/sys/bus/pci/devices")
_GOOGLE, _TPUS = "0x1ae0", ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # v2 to v7


@dataclass(frozen=True)
class Place:
    """One process's place in a run.

    Attributes:
      coordinator: host:port of process 0.
      processes: number of processes.
      process: index of this process.
      devices: local devices that it takes; None for all.
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
    """Makes JAX use one platform and no other; has to be called before any other use of JAX.

    Args:
      platform: `tpu`, `gpu` or `cpu`; "" leaves the choice to JAX_PLATFORMS, or to JAX. On a machine that has compilers
        for accelerators but no accelerator, JAX has no choice.
    """
    is_open = not jax.config.jax_platforms  # type: ignore[attr-defined]  # jax declares its options at run time
    if not platform and is_open and is_for_planning_only() and not has_tpu():
        platform = "cpu"
    if platform:
        jax.config.update("jax_platforms", platform)


def check_platform() -> None:
    """Starts JAX's backend.

    Raises:
      Refusal: 2 when JAX cannot use the requested platform, or does not use the TPUs of this host.
    """
    requested = jax.config.jax_platforms or ""  # type: ignore[attr-defined]  # jax declares its options at run time
    try:
        with without_complaints():
            backend = jax.default_backend()
    except RuntimeError as error:
        if "Unable to initialize backend" not in str(error):
            raise
        raise Refusal(
            BAD_CONFIG,
            f"JAX cannot use {requested!r}, which --platform or JAX_PLATFORMS requests ({error}); see README, Install",
        ) from None
    if backend == "cpu" and "cpu" not in requested.split(",") and has_tpu():
        raise Refusal(
            BAD_CONFIG,
            "this host has TPUs, but JAX found only the CPU; install mossa_jax[tpu], end other users of the TPUs, or "
            "give --platform=cpu",
        )


def has_tpu(devices: Path = _PCI) -> bool:
    """Returns whether this host has TPUs, whatever is installed.

    Args:
      devices: the folder in which Linux lists the PCI devices.
    """

    def is_tpu(device: Path) -> bool:
        with contextlib.suppress(OSError):
            return tuple((device / name).read_text().strip() for name in ("vendor", "device")) in known
        return False

    known = {(_GOOGLE, chip) for chip in _TPUS}
    return devices.is_dir() and any(map(is_tpu, devices.iterdir()))


def find_place(processes: int, coordinator: str, process: int, timeout: float) -> Place | None:
    """Returns this process's place in the run, from the flags and the cluster's environment; None if it is alone.

    Args:
      processes: number of processes; 1 for this one alone, 0 to ask the environment (Cloud TPU, GKE, Slurm, Open MPI).
      coordinator: host:port of process 0; "" to ask the environment.
      process: index of this process; -1 to ask the environment.
      timeout: seconds that finding the host of process 0 may take.

    Raises:
      Refusal: 2 when a value is missing, or the environment has another number of processes; 7 when the cluster does
        not answer, or the name of process 0 does not resolve in time.
    """
    if processes == 1:
        return None
    # JAX has no public function for what `jax.distributed.initialize()` detects.
    from jax._src.clusters import ClusterEnv

    from_flags = coordinator or None, None, process if process >= 0 else None
    try:
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            *from_flags, None, None, int(timeout)
        )
    except (RuntimeError, OSError) as error:  # a name does not resolve yet, or a metadata server is silent
        raise Refusal(
            LOST_PEER,
            f"the cluster did not tell the address of process 0 within {timeout:g} s (--start_timeout): {error}; "
            "start again, or give it by --coordinator",
        ) from None
    if processes and count not in (None, processes):
        raise Refusal(
            BAD_CONFIG,
            f"--processes={processes}, but the cluster's environment says {count}; give --processes=0 to use that",
        )
    count = count or processes or None
    values = {"processes": count, "coordinator": address, "process": index}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if count is None or address is None or index is None:
        raise Refusal(
            BAD_CONFIG,
            f"--processes={processes}: no cluster's environment has the rest; give {' and '.join(missing)}, or "
            "--processes=1",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise Refusal(BAD_CONFIG, f"--coordinator={address}: give it as host:port")
    if not 0 <= index < count:
        raise Refusal(BAD_CONFIG, f"--process={index}: processes are numbered from 0 to {count - 1}")
    return Place(address, count, index, devices)


def join(
    place: Place,
    start_timeout: float,
    heartbeat_timeout: float,
    stop: Stop,
    end_process: EndProcess,
    facts: Facts | None = None,
) -> Peers:
    """Waits until all processes have come, makes them one run of JAX, and watches them from then on.

    Args:
      place: of this process.
      start_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds of silence after which a process counts as lost.
      stop: as for `Peers`.
      end_process: as for `Peers`.
      facts: what all processes must have in common; None for nothing.

    Raises:
      Refusal: 2 when two processes have the same index; 2 or 3 when one has other facts than process 0; 7, naming them,
        when some do not come; 75 when stopped.
    """
    meet = _gather if place.process == 0 else _come
    with unlimited():
        links = meet(place, start_timeout, stop, facts or {})
    peers = Peers(place.process, links, heartbeat_timeout, stop, end_process)
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `Stop`
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=place.devices,
        initialization_timeout=max(int(start_timeout), 1),
        # JAX beats at half of its time-out, so it may notice a lost process by that much earlier.
        heartbeat_timeout_seconds=int(2 * (heartbeat_timeout + BEHIND)),
        shutdown_timeout_seconds=int(heartbeat_timeout + BEHIND),
    )
    return peers


def describe(place: Place) -> str:
    """Returns a log line with the number of processes and the devices of each."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) == 1:
        each = "1 device each" if counts[0] == 1 else f"{counts[0]} devices each"
    else:
        each = "devices by process: " + ", ".join(f"{process}: {counts[process]}" for process in sorted(counts))
    return f"processes: {len(counts)} of {place.processes} have joined, {each} ({jax.devices()[0].device_kind})"


def _gather(place: Place, timeout: float, stop: Stop, facts: Facts) -> list[Link]:
    """Process 0: listens until all others have come; returns its connections to them, by index.

    Where one of them has other facts, all are told so, and none of them begins.
    """
    deadline = time.monotonic() + timeout
    joined: dict[int, Link] = {}
    with _listening(place, deadline, stop) as listener, selectors.DefaultSelector() as selector:
        log.info("processes: waiting for %d others at %s", place.processes - 1, place.coordinator)
        selector.register(listener, selectors.EVENT_READ)
        reported = beat = time.monotonic()
        missing: list[int] = []
        status = ""
        while len(joined) < place.processes - 1:
            for key, _ in selector.select(0.1):
                if key.data is None:
                    link = Link(listener.accept()[0])
                    selector.register(link.connection, selectors.EVENT_READ, link)
                elif not _welcome(key.data, joined, place, facts):
                    selector.unregister(key.fileobj)
                    key.data.connection.close()
            now = time.monotonic()
            missing = [index for index in range(1, place.processes) if index not in joined]
            status = f"{len(joined) + 1} of {place.processes} have joined, missing: {_named(missing)}"
            if stop.asked:
                stop.leave()
            if any(link.differs for link in joined.values()):
                # Those that still come are told, too.
                deadline = min(deadline, now + _LATE)
            if missing and now > deadline:
                break
            if now > reported + _REPORT:
                reported = now
                log.info("processes: %s", status)
            if now > beat + BEAT:
                beat = now
                for link in joined.values():
                    link.send({"alive": 0})
        refusal = next((joined[index].differs for index in sorted(joined) if joined[index].differs), None)
        if refusal is None and missing:
            text = f"processes: {status}, after {timeout:g} s (--start_timeout); start all, or wait longer"
            refusal = Refusal(LOST_PEER, text)
        if refusal is not None:
            for link in joined.values():
                link.send({"lost": str(refusal), "code": refusal.code})
            raise refusal
    return [joined[index] for index in sorted(joined)]


def _listening(place: Place, deadline: float, stop: Stop) -> socket.socket:
    """Opens the coordinator's port, once it is free: another run may just be ending."""
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
                    BAD_CONFIG, f"--coordinator={place.coordinator}: this port cannot be opened ({error}); name another"
                ) from None
            time.sleep(0.2)


def _welcome(link: Link, joined: dict[int, Link], place: Place, facts: Facts) -> bool:
    """Adds a process that says hello; returns False if it is gone, or was told why it cannot join."""
    messages = link.receive()
    if messages is None:
        if joined.get(link.process) is link:
            del joined[link.process]
        return False
    for hello in messages:
        process, reason = hello.get("hello"), ""
        if not isinstance(process, int):
            return False
        if hello.get("of") != place.processes:
            reason = f"it is one of {hello.get('of')}, process 0 of {place.processes}; give the same --processes to all"
        elif process in joined or process not in range(1, place.processes):
            reason = "another process has this index; give each its own --process"
        if reason:
            link.send({"refused": f"process {process} on {hello.get('host')}: {reason}"})
            return False
        link.process, link.host = process, str(hello.get("host"))
        link.differs = difference(str(link), facts, hello["facts"] if isinstance(hello.get("facts"), dict) else {})
        joined[process] = link
    return True


def _come(place: Place, timeout: float, stop: Stop, facts: Facts) -> list[Link]:
    """Any other process: connects to process 0, and waits for its message that all have joined."""
    deadline = time.monotonic() + timeout
    link: Link | None = None
    while True:
        if stop.asked:
            stop.leave()
        if link is None and time.monotonic() > deadline:
            raise Refusal(
                LOST_PEER,
                f"process {place.process} of {place.processes}: process 0 did not answer at {place.coordinator} within "
                f"{timeout:g} s (--start_timeout); start it, or give its address by --coordinator",
            )
        if link is None:
            with contextlib.suppress(OSError):
                link = Link(socket.create_connection(place.address, timeout=5), 0, place.address[0])
                hello = {"hello": place.process, "of": place.processes, "host": socket.gethostname(), "facts": facts}
                link.send(hello)
            time.sleep(0.2)
            continue
        messages = link.receive()
        if messages is None or time.monotonic() - link.heard > _SILENT:
            link.connection.close()  # process 0 is gone, or something else is listening
            link = None
            time.sleep(0.2)
            continue
        for number, message in enumerate(messages, 1):
            if "refused" in message:
                raise Refusal(BAD_CONFIG, message["refused"])
            if "lost" in message:
                raise Refusal(message["code"], message["lost"])
            if "ready" in message:
                link.unread = messages[number:]
                return [link]
        time.sleep(0.05)


def _named(processes: Sequence[int]) -> str:
    names = ", ".join(map(str, processes[:16])) + (", ..." if len(processes) > 16 else "")
    return f"process{'es' if len(processes) > 1 else ''} {names}"
