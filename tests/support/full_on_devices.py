"""Run by test_full.py in a process of its own: ten steps of full fine-tuning on eight devices.

Arguments: model folder, optimizer, run folder. Saves the tuned model in `saved` of that folder. Prints, for every leaf
of the last state, its name, its shape and the share of it that one device holds.
"""

import json
import pathlib
import sys

import jax

from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.placement import leaf_name
from mossa_jax.tuning import full_finetuning as full
from tests.integration.tuning.test_full import make_member, tune

folder, optimizer, workdir = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
states, train = [], full.train


def keep_state(*arguments, **options):
    states.append(train(*arguments, **options))
    return states[-1]


full.train = keep_state
workdir.mkdir()
model = load_model(folder, mesh=make_mesh(Mesh(1, 4, 2)))
full.save_full(workdir / "saved", model, tune(model, make_member(), RunFolder(workdir), optimizer=optimizer), {})
leaves = jax.tree.leaves_with_path(states[0])
print(
    json.dumps(
        [(leaf_name(path), leaf.shape, leaf.addressable_shards[0].data.size / leaf.size) for path, leaf in leaves]
    )
)
