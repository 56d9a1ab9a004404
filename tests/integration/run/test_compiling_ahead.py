"""A stage finds its programs compiled: the thread that compiles ahead makes them from shapes, and they are the same."""

import logging

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mossa_jax.files.compiled import keep_compiled
from mossa_jax.llama.generate import greedy
from mossa_jax.processes.stop import Stop
from mossa_jax.run import ahead, pipeline
from mossa_jax.run.compare import compare
from mossa_jax.run.later_programs import compare_programs
from mossa_jax.run.tune import tune
from mossa_jax.similarity.gram import gram_sums
from mossa_jax.states.forward import read_prefix
from mossa_jax.states.keep import keep_batch
from tests.conftest import load_config

COMPILED = "PERSISTENT COMPILATION CACHE MISS for 'jit_"
FOUND = "Persistent compilation cache hit for 'jit_"


@pytest.fixture
def an_empty_cache(tmp_path):
    """No program of the run is compiled yet, neither on the disk nor in this process."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_enable_xla_caches
    keep_compiled(str(tmp_path / "compiled"))
    for function in (greedy, keep_batch, gram_sums, read_prefix):
        function.clear_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_enable_xla_caches", before[1])
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_the_large_programs_of_all_stages_are_compiled_once_and_ahead(
    an_empty_cache, tiny_config, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(ahead, "can_compile_ahead", lambda: True)
    config = load_config(tiny_config)
    folder = pipeline.open_run(config, str(tmp_path / "run"))
    run = pipeline.Run(config, folder, Stop())
    with caplog.at_level(logging.DEBUG, "jax._src.compiler"):
        tune(run, {"compare": lambda: compare_programs(run)})
        compare(run)
    run.ahead.close()
    folder.close()
    lines = [(record.threadName, record.getMessage()) for record in caplog.records]
    large = ("step", "read_rows", "branch_losses", "greedy", "read_prefix", "keep_batch", "gram_sums")

    def programs(start, thread):
        names = [
            line.removeprefix(start).split("'")[0] for name, line in lines if line.startswith(start) and name == thread
        ]
        return sorted(name for name in names if name in large)

    # E's step and the controls'; scores have one or two widths of batches.
    assert programs(COMPILED, "MainThread") == []
    assert programs(COMPILED, "ahead").count("step") == 2 == programs(FOUND, "MainThread").count("step")
    assert {"read_rows", "branch_losses", "greedy", "keep_batch", "gram_sums"} <= set(programs(COMPILED, "ahead"))
    keys = [line.split("with key ")[1] for _, line in lines if line.startswith(COMPILED)]
    assert len(keys) == len(set(keys))  # nothing twice
