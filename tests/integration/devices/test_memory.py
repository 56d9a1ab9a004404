"""Recomputation is turned on where the compiled step does not fit, and only there; what "fits" is measured against."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.config import Config, Tuning, check, recompute
from mossa_jax.devices import memory
from mossa_jax.errors import Refusal
from mossa_jax.llama.files.load import load_model
from mossa_jax.tuning import population
from tests.integration.tuning.test_population import make_member, open_folder, tune

SHAPE = jax.ShapeDtypeStruct((64, 256), jnp.float32)


def step(remat: bool):
    """A deep function: its backward pass keeps 40 arrays of 64 KiB, or a few."""

    def body(x, _):
        return jnp.sin(jnp.tanh(x) * jnp.cos(x)), None

    def loss(x):
        return jax.lax.scan(jax.checkpoint(body) if remat else body, x, length=40)[0].sum()

    return jax.jit(jax.grad(loss))


SIZES = {remat: memory.program_bytes(step(remat).lower(SHAPE).compile())["total"] for remat in (False, True)}


def device(limit, platform="tpu", kind="unknown"):
    stats = None if limit is None else {"bytes_limit": limit}
    return SimpleNamespace(memory_stats=lambda: stats, platform=platform, device_kind=kind)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG, "mossa_jax")
    return lambda level="DEBUG": [r.getMessage() for r in caplog.records if r.levelname == level]


def compiled(remat, room, lines):
    """Compiles a step under a limit; returns the program's bytes, and for which settings a step was made."""
    settings = []
    program = memory.compile_step("group", remat, lambda on: settings.append(on) or step(on), (SHAPE,), device(room))
    return memory.program_bytes(program)["total"], settings


def test_bytes_of_a_program_are_arguments_outputs_and_what_lies_between():
    sizes = memory.program_bytes(jax.jit(lambda x: x @ x.T).lower(SHAPE).compile())
    assert sizes["arguments"] == 64 * 256 * 4
    assert sizes["total"] - sizes["arguments"] - sizes["temporary"] == 64 * 64 * 4
    reused = memory.program_bytes(jax.jit(lambda x: x + 1, donate_argnums=0).lower(SHAPE).compile())
    assert reused["total"] - reused["temporary"] == 64 * 256 * 4  # the result is written over the argument


def test_auto_turns_recomputation_on_only_where_nine_tenths_are_not_enough(lines):
    assert SIZES[False] > 2 * SIZES[True]
    edge = int(SIZES[False] / 0.9)
    assert compiled("auto", edge + 10, lines) == (SIZES[False], [False])
    assert compiled("auto", edge - 10, lines) == (SIZES[True], [False, True])
    off, on = lines()
    sizes = [f"{size / 2**20:,.1f} MiB" for size in (SIZES[False], 0.9 * edge, SIZES[True])]
    assert sizes[0] in off and sizes[1] in off and "leaves it off" in off
    assert all(size in on for size in sizes) and "turns it on" in on
    assert not lines("WARNING")


def test_on_and_off_are_obeyed_whatever_the_memory(lines):
    assert compiled("on", 2**40, lines) == (SIZES[True], [True])
    assert compiled("off", 1_000, lines) == (SIZES[False], [False])
    (warning,) = lines("WARNING")
    assert "takes more memory than the device has" in warning and "tuning.slots" in warning


def test_where_the_memory_is_not_known_recomputation_is_on(lines):
    assert compiled("auto", None, lines) == (SIZES[True], [False, True])
    assert "an unknown size" in lines()[0]


def test_a_program_that_the_compiler_refuses_does_not_fit(lines):
    def refusing(remat):
        def lower(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 15.90G of 15.75G hbm. Exceeded")

        return step(True) if remat else SimpleNamespace(lower=lower)

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = jax.ShapeDtypeStruct(SHAPE.shape, SHAPE.dtype, sharding=place)
    program = memory.compile_step("group", "auto", refusing, (shape,), device(2**34))
    assert memory.program_bytes(program)["total"] == SIZES[True]
    assert f"{15.9 * 2**10:,.1f} MiB" in lines()[0]
    with pytest.raises(Refusal, match=r"group: .* compiler finds no room .*tuning.slots") as caught:
        memory.compile_step("group", "off", refusing, (shape,), device(2**34))
    assert caught.value.code == 3


def test_a_devices_memory_is_what_its_runtime_says_else_its_kind_else_the_hosts(monkeypatch, tmp_path):
    assert memory.device_room(device(123, kind="TPU v5 lite")) == 123
    assert memory.device_room(device(None, kind="TPU v5 lite")) == 15.75 * 2**30  # as libtpu says it is there
    assert memory.device_room(device(None, kind="NVIDIA H100 80GB HBM3", platform="gpu")) == 80 * 2**30
    assert memory.device_room(device(None)) is None
    whole = int(next(line for line in open("/proc/meminfo") if line.startswith("MemTotal")).split()[1]) * 1024
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "limit"),))
    assert memory.device_room(device(None, "cpu", "cpu")) == pytest.approx(whole / jax.local_device_count(), rel=1e-3)
    (tmp_path / "limit").write_text("max\n")
    assert memory.host_memory() == pytest.approx(whole, rel=1e-3)
    (tmp_path / "limit").write_text(f"{2**29}\n")
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert memory.device_room(device(None, "cpu", "cpu")) == 2**27


@pytest.mark.parametrize(
    ("remat", "means"),
    [("auto", None), ("on", True), ("off", False), ("True", True), ("False", False), (True, True), (False, False)],
)
def test_remat_may_be_a_word_or_a_truth_value(remat, means):
    tuning = Tuning(remat=remat)
    assert recompute(tuning.remat) is means and isinstance(tuning.remat, str)
    check(Config(tuning=tuning))
    tuning.remat = "perhaps"
    with pytest.raises(Refusal, match=r"config.tuning.remat='perhaps'"):
        check(Config(tuning=tuning))


def test_a_population_compiles_once_and_recomputes_where_it_must(tiny, tmp_path, monkeypatch, lines):
    """The run uses the very program whose memory was measured; with recomputation it learns the same."""
    model, settings = load_model(str(tiny.folder)), []
    make = population.make_step
    monkeypatch.setattr(population, "make_step", lambda spec: settings.append(spec.remat) or make(spec))
    members = [make_member(0, 6), make_member(1, 4)]
    ample = tune(model, members, open_folder(tmp_path / "ample"))
    assert settings == [False] and any("leaves it off" in line for line in lines())
    monkeypatch.setattr(memory, "device_room", lambda device: 2**20)
    compiles = []
    monkeypatch.setattr(memory, "program_bytes", lambda program: compiles.append(program) or {"total": 2**20 - 1})
    tight = tune(model, members, open_folder(tmp_path / "tight"))
    assert settings == [False, False, True] and len(compiles) == 2
    for ours, theirs in zip(ample, tight, strict=True):
        assert theirs["q_proj"]["b"].any()
        for target, part in ours.items():
            assert all(np.allclose(part[name], theirs[target][name], atol=1e-5) for name in part)
