"""The names of the tensors in PEFT's files: which an adapter has to have, may have, and must not have.

Shape letters: V vocabulary, D hidden, D_in and D_out input and output width of a projection, r LoRA rank, k ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mossa_jax.llama.adapters import target_sizes
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.peft_modules import BODY, EMBEDDING, HEAD, AdaptedModules, module_name
from mossa_jax.llama.files.weights import stored_shapes

STEM = "base_model.model."
"""What the names of all tensors begin with."""

# Heads of other tasks, which no layer's state depends on.
_OTHER_HEADS = tuple(f"{STEM}{name}." for name in ("score", "classifier", "qa_outputs", "v_head"))
_IN_BARE_MODELS = tuple(f"{STEM}{name}." for name in ("layers", "embed_tokens", "norm"))


def find_body(names: Iterable[str]) -> str:
    """Returns what names of modules begin with: "" if an adapter was made for the bare model, without a head."""
    return "" if any(name.startswith(_IN_BARE_MODELS) for name in names) else BODY


class TensorNames:
    """What the tensors of a file are.

    Attributes:
      shapes: name -> shape of every tensor that has to be there, and of those that may be and are.
      needed: the names of updates and rows, which are read at once.
      weights: name of a tensor of the base model -> name of the one in the file that takes its place.
      rows: the name of rows of the embedding, where the config says of which ids; else None.
      row_ids: those ids.
      unexpected: what is none of these.
      body: what names of modules begin with.
    """

    def __init__(self, modules: AdaptedModules, config: dict[str, Any], arch: Architecture, names: Iterable[str]):
        """Names everything that `config` implies for a model of `arch`; `names` are those in the file."""
        names = set(names)
        self.body = find_body(names)
        self._modules = modules
        self.shapes: dict[str, tuple[int, ...]] = self._updates(arch)
        self.rows, self.row_ids = self._rows(config, arch)
        self.needed = [*self.shapes]
        self.weights = self._weights(arch, names)
        self.unexpected = {name for name in names - self.shapes.keys() if not name.startswith(_OTHER_HEADS)}

    def of_outside(self, module: str) -> tuple[str, str]:
        """Returns the names of the two matrices of the embedding's or the head's update."""
        if module == EMBEDDING:
            stem = f"{STEM}{self.body}{EMBEDDING}.lora_embedding_"
            return stem + "A", stem + "B"
        return f"{STEM}{HEAD}.lora_A.weight", f"{STEM}{HEAD}.lora_B.weight"

    def _updates(self, arch: Architecture) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all matrices of updates."""
        shapes: dict[str, tuple[int, ...]] = {}
        for projection, size in self._modules.projections.items():
            d_in, d_out = target_sizes(arch)[projection.target]
            stem = f"{STEM}{module_name(projection, self.body)}.lora_"
            # PEFT stores both matrices transposed: A [r, D_in] and B [D_out, r].
            shapes[f"{stem}A.weight"], shapes[f"{stem}B.weight"] = (size.rank, d_in), (d_out, size.rank)
        for module, size in self._modules.outside.items():
            # The embedding is a map from V to D, the head one from D to V.
            d_in, d_out = (arch.vocab, arch.hidden) if module == EMBEDDING else (arch.hidden, arch.vocab)
            a, b = self.of_outside(module)
            shapes[a], shapes[b] = (size.rank, d_in), (d_out, size.rank)
        return shapes

    def _rows(self, config: dict[str, Any], arch: Architecture) -> tuple[str | None, list[int]]:
        """Returns the name and the ids of rows that replace those of the embedding."""
        ids = config.get("trainable_token_indices") or []
        ids = next(iter(ids.values())) if isinstance(ids, dict) else ids
        if not ids:
            return None, []
        name = f"{STEM}{self.body}{EMBEDDING}.token_adapter.trainable_tokens_delta"
        self.shapes[name] = (len(ids), arch.hidden)
        return name, ids

    def _weights(self, arch: Architecture, names: set[str]) -> dict[str, str]:
        """Finds whole weights, which the config asks for or which PEFT would load where they are."""
        adapted = {module_name(one): one for one in self._modules.projections}
        outside = {EMBEDDING: BODY + EMBEDDING, HEAD: HEAD}
        adapted_outside = {outside[one] for one in self._modules.outside}
        head = f"{HEAD}.weight"
        weights = {}
        for stored, shape in (stored_shapes(arch) | ({head: (arch.vocab, arch.hidden)} if self.body else {})).items():
            module, leaf = stored.rsplit(".", 1)
            in_file = STEM + (stored if self.body else stored.removeprefix(BODY))
            is_saved = self._modules.is_saved(module if self.body else module.removeprefix(BODY))
            if module in adapted or module in adapted_outside:
                in_file = f"{in_file.removesuffix(leaf)}base_layer.{leaf}"
            if is_saved or in_file in names:
                self.shapes[in_file] = shape
                weights[stored] = in_file
        if arch.tied_head and head in weights:
            own = weights.pop(head)
            # PEFT fills the one matrix that both are, unless the config makes the head a copy.
            if not self._modules.is_saved(HEAD):
                weights[f"{BODY}{EMBEDDING}.weight"] = own
        return weights
