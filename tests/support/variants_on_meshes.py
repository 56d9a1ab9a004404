"""Run by test_variants.py in a process of its own: log probabilities by the variants of a profile on several meshes.

Arguments: model folder, file of pairs and adapters (.npz), file for the result, meshes as "adapter,fsdp,tensor ...".
"""

import sys

import numpy as np

from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.function import profile
from mossa_jax.function.packed_pairs import PackedSize, PairConfig
from mossa_jax.function.variants import variant_likelihoods, variant_shape
from mossa_jax.llama.files.load import load_model
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
config = PairConfig(Packing(32), 8)
rows = []
for sizes in meshes.split():
    model = load_model(folder, mesh=make_mesh(Mesh(*map(int, sizes.split(",")))))
    arch = model.architecture
    variants = profile.sources(profile.profile_variants(arch.layers))
    lists = [[PackedSize.of(packed) for packed in config.pack(arch, pairs)]]
    shape = variant_shape(arch, model.mesh, lists, variants, config, 4, 1 << 30)
    rows.append(variant_likelihoods(model, adapters, variants, pairs, config, shape))
np.save(result, np.stack(rows))
