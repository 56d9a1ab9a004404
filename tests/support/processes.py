"""Runs commands side by side as the processes of one JAX run."""

import os
import socket
import subprocess


def free_address() -> str:
    """Returns a host:port that is free now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def cpu(root, devices: int) -> dict[str, str]:
    """Returns the environment of a process with this number of virtual CPU devices and this repository."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)}


def together(commands, root, devices: int, folder, timeout: float = 400) -> list[str]:
    """Runs the commands at the same time, expects exit code 0 of all, and returns the standard output of each."""
    files = [[(folder / f"{index}.{kind}").open("w+") for kind in ("out", "err")] for index in range(len(commands))]
    running = [
        subprocess.Popen([str(part) for part in command], cwd=root, env=cpu(root, devices), stdout=out, stderr=err)
        for command, (out, err) in zip(commands, files, strict=True)
    ]
    try:
        codes = [process.wait(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
        for pair in files:
            for file in pair:
                file.close()
    said = [(folder / f"{index}.err").read_text()[-3000:] for index in range(len(commands))]
    assert not any(codes), f"exit codes {codes}\n" + "\n----\n".join(said)
    return [(folder / f"{index}.out").read_text() for index in range(len(commands))]
