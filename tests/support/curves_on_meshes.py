"""Run by test_curves.py in processes of their own: loss curves of a population on several meshes.

Arguments: model folder, meshes as "adapter,fsdp,tensor ...", run folder and, for several processes, their number, the
coordinator and this one's index. Trains eight models for twenty steps on each mesh. Prints as JSON, for each mesh, the
losses of every model and the all-gathers of the compiled step.
"""

import json
import pathlib
import re
import sys

import jax
import numpy as np

folder, meshes, workdir, *processes = sys.argv[1:]
if processes:
    jax.distributed.initialize(processes[1], int(processes[0]), int(processes[2]))

from mossa_jax.config import Mesh, Schedule, Tuning  # noqa: E402
from mossa_jax.devices.mesh import make_mesh, place  # noqa: E402
from mossa_jax.files.run_folder import RunFolder  # noqa: E402
from mossa_jax.llama import adapters  # noqa: E402
from mossa_jax.llama.files.load import load_model  # noqa: E402
from mossa_jax.processes.stop import Stop  # noqa: E402
from mossa_jax.tokens.encoded import Encoded, in_memory  # noqa: E402
from mossa_jax.tokens.rows import pack_examples  # noqa: E402
from mossa_jax.tuning import population  # noqa: E402
from mossa_jax.tuning.batch import place_batch  # noqa: E402
from mossa_jax.tuning.members import Member, TuningContext  # noqa: E402
from mossa_jax.tuning.population_run import tune_population  # noqa: E402

MODELS, STEPS = 8, 20
tuning = Tuning(rank=2, targets=("q_proj", "v_proj", "down_proj"), log_every=1, checkpoint_every=1000)
schedule = Schedule(batch_rows=4, learning_rate=5e-3)


def member(number: int) -> Member:
    rng = np.random.default_rng(number)
    draw = lambda size: rng.integers(4, 60, size).tolist()  # noqa: E731
    examples = [Encoded([1, *draw(rng.integers(4, 14))], [*draw(3), 2]) for _ in range(40)]
    return Member(f"model {number}", pack_examples(in_memory(examples), 32), STEPS, (1, number))


def gathers_of_step(mesh, model) -> list[str]:
    """Returns the all-gathers of the compiled step."""
    starts = [adapters.initial_adapter(model.architecture, tuning.targets, 2, 4.0, 0, (n,)) for n in range(MODELS)]
    stacked = adapters.stack(model.architecture, starts)
    optimizer = population.optimizer_for(tuning, schedule)
    state = population.initial_state(adapters.matrices(stacked), optimizer, mesh)
    scale = {t: place(mesh, leaf, adapters.AXES["scale"]) for t, leaf in adapters.scales(stacked).items()}
    rows = [member(n).rows[0] for n in range(MODELS)]
    width = max(part.width for part in rows)
    parts = [part.take(np.arange(4), width) for part in rows]
    batch = type(parts[0])(*(np.stack([getattr(p, f) for p in parts]) for f in vars(parts[0])))
    total = place(mesh, np.full(MODELS, STEPS, np.int32), ("adapter",))
    active = place(mesh, np.ones(MODELS, bool), ("adapter",))
    step = population.make_step(population.StepSpec(model.architecture, optimizer, mesh))
    placed = place_batch(mesh, batch)
    text = step.lower(model.state, scale, total, state, placed, active).compile().as_text()
    return [line.strip()[:200] for line in text.splitlines() if re.search(r"= .*all-gather(-start)?\(", line)]


results = {}
for sizes in meshes.split():
    mesh = make_mesh(Mesh(*map(int, sizes.split(","))))
    model = load_model(folder, mesh=mesh)
    path = pathlib.Path(workdir) / sizes
    path.mkdir(parents=True, exist_ok=True)
    run_folder = RunFolder(path, writer=jax.process_index() == 0)
    context = TuningContext(tuning, run_folder, Stop())
    members = [member(n) for n in range(MODELS)]
    tune_population("group", members, model, schedule, context, export=lambda member, adapter: None)
    if jax.process_index() == 0:
        curves = [[0.0] * STEPS for _ in range(MODELS)]
        for record in run_folder.metrics():
            curves[int(record["model"].split()[1])][record["step"] - 1] = record["loss"]
        gathers = [] if processes else gathers_of_step(mesh, model)
        results[sizes] = {"curves": curves, "gathers": gathers}
print(json.dumps(results))
