"""Run by test_slots_on_meshes.py in processes of their own: a population's training that goes on, on another mesh.

Arguments: model folder, run folder, mesh as "adapter,fsdp,tensor" and the step to stop at (0: none). Seven models
through three slots. Writes the adapters as they are handed over; prints, as JSON, the warnings and the order of all
metrics.
"""

import json
import logging
import pathlib
import sys

import jax
import numpy as np

from mossa_jax.config import Mesh, Schedule, Tuning
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.errors import Refusal
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.load import load_model
from mossa_jax.processes.stop import Stop
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import pack_examples
from mossa_jax.tuning.members import Member, TuningContext
from mossa_jax.tuning.population_run import tune_population

folder, workdir, sizes, stop_at = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
mesh = make_mesh(Mesh(*map(int, sizes.split(","))))
workdir.mkdir(exist_ok=True)


def member(number: int, steps: int) -> Member:
    rng = np.random.default_rng(number)
    draw = lambda size: rng.integers(4, 60, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(rng.integers(4, 14))], [*draw(3), 2]) for _ in range(30)]
    return Member(f"model{number}", pack_examples(in_memory(examples), 32), steps, (1, number))


def export(member, adapter):
    np.savez(workdir / member.name, **{f"{t}.{n}": leaf for t, part in adapter.items() for n, leaf in part.items()})


class Asking(RunFolder):
    """Asks to stop when so many steps of the first model are done."""

    def append_metrics(self, record):
        super().append_metrics(record)
        if stop_at and record["model"] == "model0" and record["step"] >= stop_at:
            stop.asked = True


warnings = []
watch = logging.Handler(logging.WARNING)
watch.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("mossa_jax").addHandler(watch)
assert len(jax.devices()) == mesh.size
stop, model = Stop(), load_model(folder, mesh=mesh)
members = [member(number, steps) for number, steps in enumerate((30, 5, 21, 12, 26, 17, 4))]
tuning = Tuning(rank=2, targets=("q_proj", "v_proj", "down_proj"), slots=3, log_every=1, checkpoint_every=1000)
run_folder = Asking(workdir)
try:
    schedule = Schedule(batch_rows=4, learning_rate=5e-3)
    tune_population("group", members, model, schedule, TuningContext(tuning, run_folder, stop), export)
    assert not stop_at
except Refusal as refusal:
    assert refusal.code == 75 and stop_at
print(json.dumps([warnings, [(record["model"], record["step"]) for record in run_folder.metrics()]]))
