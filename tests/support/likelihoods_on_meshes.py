"""Run by test_likelihood.py in a process of its own: log probabilities of answers on several meshes.

Arguments: model folder, file of pairs and adapters (.npz), file for the result, meshes as "adapter,fsdp,tensor ...".
"""

import sys

import numpy as np

from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.function.likelihood import log_likelihoods
from mossa_jax.llama.files.load import load_model
from mossa_jax.states import PassConfig
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import Packing

folder, inputs, result, meshes = sys.argv[1:]
with np.load(inputs) as file:
    prompts, answers = ([ids[ids >= 0].tolist() for ids in file[name]] for name in ("prompts", "answers"))
    adapters: dict = {}
    for name in file.files:
        if "." in name:
            target, side = name.split(".")
            adapters.setdefault(target, {})[side] = file[name]
pairs = in_memory(Encoded(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
rows = []
for sizes in meshes.split():
    model = load_model(folder, mesh=make_mesh(Mesh(*map(int, sizes.split(",")))))
    rows.append(log_likelihoods(model, adapters, pairs, PassConfig("last", 4, Packing(32))))
np.save(result, np.stack(rows))
