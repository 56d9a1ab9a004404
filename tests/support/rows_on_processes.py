"""Run by test_row_order.py in processes of their own: the batches that the training loop places, step by step.

Arguments: model folder, task folder, run folder and, for several processes, their number, the coordinator and this
one's index. Trains twelve steps, stopping and beginning again after the fifth; prints a digest of every batch that
was placed, whole, in the order of steps.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

folder, tasks, workdir, *processes = sys.argv[1:]
if processes:
    jax.distributed.initialize(processes[1], int(processes[0]), int(processes[2]))

from mossa_jax.config import Mesh, Schedule, Tasks, Tokens, Tuning  # noqa: E402
from mossa_jax.devices.mesh import make_mesh  # noqa: E402
from mossa_jax.errors import STOPPED, Refusal  # noqa: E402
from mossa_jax.files.run_folder import RunFolder  # noqa: E402
from mossa_jax.llama.files.load import load_model  # noqa: E402
from mossa_jax.processes.stop import Stop  # noqa: E402
from mossa_jax.tasks import load_suite  # noqa: E402
from mossa_jax.tokens.encoded import encode_split  # noqa: E402
from mossa_jax.tokens.rows import pack_examples  # noqa: E402
from mossa_jax.tuning import batch  # noqa: E402
from mossa_jax.tuning.members import Member, TuningContext  # noqa: E402
from mossa_jax.tuning.population_run import tune_population  # noqa: E402

placed, place, stop = [], batch.place_batch, Stop()


def recorded(mesh, rows):
    found = place(mesh, rows)
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(np.asarray(multihost_utils.process_allgather(found[name], tiled=True)).tobytes())
    placed.append(digest.hexdigest())
    stop.asked = len(placed) == 5
    return found


batch.place_batch = recorded
model = load_model(folder, mesh=make_mesh(Mesh(1, -1, 1)))
tokens = Tokens(max_tokens=48, row_length=24, long_row_length=48)
members = []
for number, task in enumerate(load_suite(Tasks(suite="folder", folder=tasks)).tasks[:2]):
    examples = encode_split(task, "train", model.tokenizer(), tokens, 100).examples
    members.append(Member(task.name, pack_examples(examples, 24, 48), 12, (0, number)))
pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
run_folder = RunFolder(workdir, writer=jax.process_index() == 0)
for attempt in range(2):
    try:
        context = TuningContext(Tuning(rank=2, log_every=1), run_folder, stop)
        tune_population("group", members, model, Schedule(batch_rows=8), context, export=lambda member, adapter: None)
    except Refusal as refusal:
        assert refusal.code == STOPPED and attempt == 0
print(json.dumps(placed))
