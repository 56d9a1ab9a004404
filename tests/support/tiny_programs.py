"""Programs in a process of their own, with eight virtual devices."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


def on_eight_devices(program: str) -> str:
    """Runs a program on eight virtual devices and returns what it prints; it may import this package's modules."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
