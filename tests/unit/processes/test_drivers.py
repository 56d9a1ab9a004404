"""Machines that have compilers for accelerators, but no accelerator."""

import importlib.util
import os

import jax
import pytest

from mossa_jax.processes import drivers, rendezvous


@pytest.mark.parametrize(
    ("modules", "devices", "library", "only_plans"),
    [
        ((), (), None, False),
        (("jax_plugins.xla_cuda13",), (), None, True),
        (("libtpu",), (), None, True),
        (("jax_plugins.xla_cuda12", "libtpu"), ("null",), None, True),
        (("jax_plugins.xla_cuda13",), ("nvidia0", "nvidiactl"), None, False),
        (("jax_plugins.xla_cuda13",), (), "libcuda.so.1", False),
        (("jax_plugins.xla_cuda13",), ("dxg",), None, False),
        (("libtpu",), ("accel0",), None, False),
        (("libtpu",), ("vfio/0",), None, False),
        (("libtpu",), ("vfio/vfio",), None, True),
    ],
)
def test_compilers_without_drivers_are_for_planning_only(monkeypatch, tmp_path, modules, devices, library, only_plans):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in modules else None)
    monkeypatch.setattr(drivers.ctypes.util, "find_library", lambda name: library)
    monkeypatch.setattr(drivers.sys, "platform", "linux")
    for name in devices:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert drivers.is_for_planning_only(tmp_path) is only_plans


@pytest.mark.parametrize(
    ("flag", "variable", "has_tpu", "platforms"),
    [("", "", False, "cpu"), ("", "", True, ""), ("gpu", "", False, "gpu"), ("", "cuda", False, "cuda")],
)
def test_jax_does_not_look_for_accelerators_there(monkeypatch, flag, variable, has_tpu, platforms):
    before = jax.config.jax_platforms
    monkeypatch.setattr(rendezvous, "is_for_planning_only", lambda: True)
    monkeypatch.setattr(rendezvous, "has_tpu", lambda: has_tpu)
    try:
        jax.config.update("jax_platforms", variable)
        rendezvous.choose_platform(flag)
        assert jax.config.jax_platforms == platforms
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("only_plans", [True, False])
def test_complaints_about_drivers_are_dropped_there_alone(monkeypatch, capfd, only_plans):
    monkeypatch.setattr(drivers, "is_for_planning_only", lambda: only_plans)
    with drivers.without_complaints():
        os.write(2, b"Could not find cuda drivers\n")
    os.write(2, b"error: something else\n")
    expected = "error: something else\n" if only_plans else "Could not find cuda drivers\nerror: something else\n"
    assert capfd.readouterr().err == expected
