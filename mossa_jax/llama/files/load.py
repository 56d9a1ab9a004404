"""Loads a model by folder or hub id: architecture, weights on the mesh, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.llama.architecture import Architecture, read_architecture, read_config
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import is_adapter
from mossa_jax.llama.files.weights import load_weights, open_checkpoint
from mossa_jax.llama.kernel_check import check_kernel
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.tokens.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Model:
    """A base model, ready to run.

    Attributes:
      name: the folder or hub id that the user gave.
      folder: its files.
      architecture: from its config.json.
      state: its weights, spread over `mesh`.
      mesh: the devices.
      has_head: whether it has an output head. Without one it gives states, but no answers and no likelihoods.
    """

    name: str
    folder: epath.Path
    architecture: Architecture
    state: nnx.State
    mesh: jax.sharding.Mesh
    has_head: bool = True

    def __repr__(self) -> str:
        arch, leaves = self.architecture, jax.tree.leaves(self.state)
        count, kinds = sum(leaf.size for leaf in leaves), sorted({str(leaf.dtype) for leaf in leaves})
        devices = self.mesh.devices.ravel()
        return (
            f"Model({self.name!r}: {arch.family}, {arch.layers} layers x width {arch.hidden:,}, {count:,} parameters, "
            f"{' and '.join(kinds)}, {len(devices)} x {devices[0].device_kind})"
        )

    def tokenizer(self, template: str = "none") -> Tokenizer:
        """Loads its tokenizer, with a prompt template."""
        arch = self.architecture
        return load_tokenizer(self.folder, template, arch.bos, arch.eos, arch.vocab)

    def check_head(self) -> None:
        """Refuses a model without an output head where its answers are wanted.

        Raises:
          Refusal: 3.
        """
        if not self.has_head:
            raise Refusal(
                BAD_INPUT,
                f"model {self.name} has no lm_head.weight, so it gives states but no answers; use the model with its "
                "head (transformers: AutoModelForCausalLM)",
            )


def load_model(name: str, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None, revision: str = "") -> Model:
    """Loads a Llama-family model, from the files that transformers would read.

    Tensors that no layer's state depends on (a classifier's head) are left out with a warning, and a model without an
    output head is loaded for its states.

    Args:
      name: a Hugging Face model folder or a hub id.
      dtype: of weights and compute: "float32", "bfloat16" or, where jax computes with 64 bits, "float64".
      mesh: default: one device.
      revision: of a hub id.

    Raises:
      Refusal: 2 for a number type, or a mesh that does not fit the model's heads; 3 when the model is missing or
        cannot be computed exactly; 4 when access is denied.
    """
    if dtype not in ("float32", "bfloat16", "float64"):
        raise Refusal(BAD_CONFIG, f"dtype {dtype!r} is not supported; use float32, bfloat16 or float64")
    # Without 64 bits, jax would make float32 arrays of it.
    # The attribute is defined at run time only.
    if dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise Refusal(BAD_CONFIG, "dtype 'float64' needs 64-bit jax; set JAX_ENABLE_X64=1")
    # Cheap refusals come first: number type, files, architecture, and only then gigabytes of weights.
    folder = locate(name, revision)
    if is_adapter(folder) and (folder / "config.json").exists():
        # transformers would load the model and put the adapter onto it.
        raise Refusal(
            BAD_INPUT,
            f"{folder} holds an adapter beside the model (adapter_config.json); move it to a folder of its own",
        )
    architecture = read_architecture(folder)
    if "auto_map" in read_config(folder):
        log.warning(
            "%s comes with code of its own (auto_map), which is never run: it is read as %s", name, architecture.family
        )
    mesh = mesh_lib.single_device() if mesh is None else mesh
    check_kernel(mesh, jnp.dtype(dtype), architecture.head_dim, architecture.attention_cap)
    with goodput.lost("load"):
        checkpoint = open_checkpoint(folder, architecture)
        weights = load_weights(checkpoint, architecture, mesh, jnp.dtype(dtype))
    return Model(name, folder, architecture, weights, mesh, checkpoint.has_head)
