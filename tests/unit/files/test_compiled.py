"""Compiled programs that JAX keeps in our folder: reused, and compiled again where they are damaged or for others."""

import logging
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mossa_jax.errors import Refusal
from mossa_jax.files import compiled
from mossa_jax.files.compiled import keep_compiled

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_enable_xla_caches",
    "jax_enable_compilation_cache",
)


@pytest.fixture(autouse=True)
def restored(tmp_path, monkeypatch):
    """JAX as a user has it who never configured its cache, and a cache of our own; both only for this test."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def hits_and_misses(caplog):
    """Compiles a program as a new process would; returns (1, 0) where JAX says that it was kept, else (0, 1)."""

    def compile_anew() -> tuple[int, int]:
        compilation_cache.reset_cache()
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "jax._src.compiler"):
            assert jax.jit(lambda x: x * 3 + 1, inline=True)(jnp.float32(2)) == 7
        lines = [line for line in caplog.messages if "lambda" in line]
        return tuple(
            sum(line.startswith(start) for line in lines)
            for start in ("Persistent compilation cache hit", "PERSISTENT COMPILATION CACHE MISS")
        )

    return compile_anew


def kept(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*.kept") if "lambda" in path.name]


def test_by_default_programs_are_kept_in_the_cache_of_this_machine(tmp_path, hits_and_misses):
    assert not compiled.is_kept()
    keep_compiled()
    assert compiled.is_kept()
    assert hits_and_misses() == (0, 1) and hits_and_misses() == (1, 0)
    (path,) = kept(tmp_path)
    assert path.parent == tmp_path / "cache/compiled" / compiled.machine()


def test_another_folder_can_be_named_and_the_cache_stays_empty(tmp_path, hits_and_misses):
    keep_compiled(str(tmp_path / "mine"))
    assert hits_and_misses() == (0, 1) and hits_and_misses() == (1, 0)
    assert len(kept(tmp_path / "mine")) == 1 and not (tmp_path / "cache").exists()


def test_none_keeps_none_also_where_jax_is_configured_otherwise(tmp_path, hits_and_misses):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    keep_compiled("none")
    assert not compiled.is_kept()
    assert hits_and_misses() == hits_and_misses() == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_of_jax_comes_before_the_default(tmp_path, hits_and_misses):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    keep_compiled()
    assert compiled.is_kept()
    assert hits_and_misses() == (0, 1) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-9], lambda content: b"#!/bin/sh\n" * 9]
)
def test_a_damaged_program_is_compiled_again_and_kept_again(tmp_path, hits_and_misses, damage):
    keep_compiled()
    assert hits_and_misses() == (0, 1)
    (path,) = kept(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert hits_and_misses() == (0, 1) and hits_and_misses() == (1, 0)


def test_content_that_is_no_program_is_compiled_again(tmp_path, hits_and_misses):
    """The file is as it was written, but what JAX finds in it is not a program."""
    keep_compiled()
    assert hits_and_misses() == (0, 1)
    (path,) = kept(tmp_path)
    (entries,) = (value for value in compiled._folders.values() if str(tmp_path) in str(value.folder))
    entries.write(path.name.removesuffix(".kept"), b"no program")
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert hits_and_misses() == (0, 1)


@pytest.mark.parametrize("folder", ["file/cache", "file"])
def test_a_folder_that_cannot_be_written_is_one_line_and_programs_run(
    tmp_path, monkeypatch, hits_and_misses, caplog, folder
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOSSA_CACHE", str(tmp_path / folder))
    keep_compiled()
    assert caplog.text.count("cannot be written") == 1
    assert hits_and_misses() == hits_and_misses() == (0, 1)
    assert "cannot be written" not in caplog.text


def test_a_program_for_another_cpu_or_of_another_version_is_not_read(tmp_path, monkeypatch, hits_and_misses):
    keep_compiled()
    assert hits_and_misses() == (0, 1)
    (tmp_path / "cpuinfo").write_text("model name: Another CPU\nflags: sse\nbogomips: 1\nbogomips: 2\n")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compiled, "_CPU_INFO", tmp_path / "cpuinfo")
    keep_compiled()
    assert hits_and_misses() == (0, 1)
    names = {compiled.machine()}
    (tmp_path / "cpuinfo").write_text("model name: Another CPU\nflags: sse\nbogomips: 3\n")
    assert names == {compiled.machine()}  # what differs from boot to boot plays no part
    (tmp_path / "cpuinfo").write_text("model name: Another CPU\nflags: sse avx\n")
    names.add(compiled.machine())
    monkeypatch.setattr(compiled.jaxlib, "__version__", "0.0.1")
    names.add(compiled.machine())
    assert len(names) == 3


def test_the_limit_of_jax_is_the_limit_here(tmp_path, hits_and_misses):
    jax.config.update("jax_compilation_cache_max_size", 1)
    keep_compiled()
    assert hits_and_misses() == hits_and_misses() == (0, 1)
    assert not list(tmp_path.rglob("*.kept"))


def test_a_scheme_that_is_unknown_is_refused():
    with pytest.raises(Refusal, match=r"--compile_cache=nowhere://x: .*nowhere"):
        keep_compiled("nowhere://x")
