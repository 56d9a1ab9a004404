"""Run by test_kills.py in processes of their own: a population's training that can be killed at any moment.

Arguments: model folder, run folder. Nine models take turns in three slots, with a checkpoint every ten steps. Writes
the number of every step that begins to steps.txt, digests of adapters and of their snapshots to .txt files, and the
last state's digest to state.txt.
"""

import hashlib
import pathlib
import sys
import time
from dataclasses import replace

import jax
import numpy as np

from mossa_jax.config import Schedule, Tuning
from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import write_bytes
from mossa_jax.llama.files.load import load_model
from mossa_jax.processes.stop import Stop
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import pack_examples
from mossa_jax.tuning import population_run
from mossa_jax.tuning.members import Member, TuningContext

folder, workdir = sys.argv[1], pathlib.Path(sys.argv[2])
jax.config.update("jax_compilation_cache_dir", str(workdir.parent / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def member(number: int, steps: int) -> Member:
    rng = np.random.default_rng(number)
    draw = lambda size: rng.integers(4, 60, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(rng.integers(4, 14))], [*draw(3), 2]) for _ in range(30)]
    return Member(f"model{number}", pack_examples(in_memory(examples), 32), steps, (1, number))


def export(member, adapter):
    flat = {f"{target}.{name}": leaf for target, part in adapter.items() for name, leaf in part.items()}
    write_bytes(workdir / f"{member.name}.txt", digest(flat).encode())


def keep_snapshot(member, step, adapter):
    export(replace(member, name=f"{member.name}.step{step}"), adapter)


def digest(tree) -> str:
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha256.update(np.asarray(leaf).tobytes())
    return sha256.hexdigest()


train = population_run.train


def traced_train(label, total, state, step, *reports, **options):
    """The training loop, slow enough to be hit, and with a trace of its steps."""

    def traced(state, number):
        with (workdir / "steps.txt").open("a") as file:
            file.write(f"{number}\n")
        time.sleep(0.02)
        state, metrics = step(state, number)
        if number + 1 == total:
            write_bytes(workdir / "state.txt", digest(state).encode())
        return state, metrics

    return train(label, total, state, traced, *reports, **options)


population_run.train = traced_train
model = load_model(folder)
members = [member(number, steps) for number, steps in enumerate((90, 13, 61, 34, 77, 50, 8, 70, 41))]
tuning = Tuning(rank=2, targets=("q_proj", "v_proj"), slots=3, log_every=5, checkpoint_every=10, snapshots=3)
with Stop().listening() as stop:
    (workdir / "ready.txt").touch()
    try:
        schedule, context = Schedule(batch_rows=2, learning_rate=5e-3), TuningContext(tuning, RunFolder(workdir), stop)
        population_run.tune_population("group", members, model, schedule, context, export, (), keep_snapshot)
    except Refusal as refusal:
        sys.exit(refusal.code)
