"""The tensors of a model folder under the names that its architecture expects, as transformers would match them.

transformers loads what fits and warns of the rest. Here the same holds for what no layer's state depends on (heads
of other models, layers beyond those of config.json): it is left out with a warning. A tensor of a layer that is
missing, has another shape or is not expected is refused, since then config.json and weights are not of one model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.files.safetensors import FLOATS, StoredTensor
from mossa_jax.llama.files.tensors import TensorReader
from mossa_jax.log import log

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_PREFIX = "model."
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
# Buffers that older exports store although they follow from the config.
_IGNORED_ENDINGS = ("rotary_emb.inv_freq", "position_ids")
# Endings of the tensors that quantized layers have in place of a matrix: GPTQ, AWQ, bitsandbytes, FP8, compressed.
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|SCB|weight_format|weight_packed|weight_scale(_inv)?|weight\.(absmax|quant_map|"
    r"quant_state.*|nested_.*))$"
)
# Rows of two matrices that are compared at once.
_CHUNK = 8192


class Checkpoint(TensorReader):
    """The tensors of a model folder by the names of its architecture.

    Attributes:
      has_head: whether the output head is there, stored or tied to the embedding.
    """

    def __init__(self, folder: epath.PathLike, expected: Mapping[str, tuple[int, ...]], layers: int):
        """Finds and checks the tensors.

        Args:
          folder: Hugging Face layout.
          expected: the shape of each tensor by its name. Without `lm_head.weight` the head is tied to the embedding.
          layers: how many layers the model has.

        Raises:
          Refusal: 3 as in `TensorReader`, and with the missing, unexpected and misshapen tensors in one message.
        """
        super().__init__(folder)
        is_tied = HEAD not in expected
        self.tensors = _renamed(self.tensors, {*expected, HEAD}, str(self.folder))
        # transformers ties in both directions: the embedding may be stored under the name of the head alone.
        if is_tied and HEAD in self.tensors:
            self.tensors.setdefault(EMBEDDING, self.tensors[HEAD])
        self.has_head = is_tied or HEAD in self.tensors
        self._check(expected, layers)
        if is_tied and HEAD in self.tensors:
            self._check_tied()

    def _check(self, expected: Mapping[str, tuple[int, ...]], layers: int) -> None:
        """Refuses tensors that do not fit, and warns of those that are left out."""
        present = {name for name in self.tensors if not name.endswith(_IGNORED_ENDINGS)}
        quantized = sorted(name for name in present if _QUANTIZED.search(name)) or sorted(
            name for name in present & expected.keys() if self.tensors[name].dtype not in FLOATS
        )
        if quantized:
            raise Refusal(
                BAD_INPUT,
                f"{self.folder}: {quantized[0]} is stored as {self.tensors[quantized[0]].dtype}, part of a quantized "
                f"model; only {', '.join(FLOATS)} can be read: use a checkpoint that is not quantized",
            )
        missing = sorted(expected.keys() - present - {HEAD})
        spare = sorted(present - expected.keys() - {HEAD})
        left_out = [name for name in spare if _is_beside(name, layers)]
        if missing and (wrapped := _wrapped(missing[0], spare)):
            raise Refusal(
                BAD_INPUT,
                f"{self.folder}: its tensors are called {wrapped!r}, not {missing[0]!r}, as of a model that was saved "
                "inside another one; transformers does not read them either: save the model itself (save_pretrained)",
            )
        problems = [f"missing {name}" for name in missing]
        problems += [f"unexpected {name}" for name in spare if name not in left_out]
        problems += [
            f"{name} has shape {self.tensors[name].shape}, not {shape}"
            for name, shape in sorted(expected.items())
            if name in present and self.tensors[name].shape != shape
        ]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise Refusal(BAD_INPUT, f"{self.folder} does not fit its config.json: {shown}")
        if left_out:
            log.warning(
                "%s: %d tensors that are no part of the layers are left out (%s%s)",
                self.folder,
                len(left_out),
                ", ".join(left_out[:4]),
                ", ..." if len(left_out) > 4 else "",
            )
        if not self.has_head:
            log.warning(
                "%s has no %s, and config.json does not tie it to the embedding: it gives states, but no answers",
                self.folder,
                HEAD,
            )

    def _check_tied(self) -> None:
        """Refuses a head that differs from the embedding although config.json says that they are one."""
        head, embedding = self.tensors[HEAD], self.tensors[EMBEDDING]
        if head is embedding:
            return
        is_same = head.shape == embedding.shape
        for start in range(0, head.shape[0] if is_same else 0, _CHUNK):
            rows = slice(start, min(start + _CHUNK, head.shape[0]))
            parts = [np.empty((rows.stop - start, head.shape[1]), np.float64) for _ in range(2)]
            for part, name in zip(parts, (HEAD, EMBEDDING), strict=True):
                self.read_into(part, name, (rows, slice(None)))
            is_same = is_same and np.array_equal(parts[0], parts[1], equal_nan=True)
        if not is_same:
            raise Refusal(
                BAD_INPUT,
                f"{self.folder}: {HEAD} is stored and differs from {EMBEDDING}, but config.json ties them "
                "(tie_word_embeddings); transformers takes the stored one: set tie_word_embeddings to false",
            )


def _renamed(tensors: Mapping[str, StoredTensor], names: set[str], folder: str) -> dict[str, StoredTensor]:
    """Puts the prefix of the base class before names that lack it, or takes it off, where that gives a known name.

    A folder that was saved from the base class (`LlamaModel`) has `layers.0...`, one from the class with a head
    `model.layers.0...`; transformers reads either into the other.
    """
    renamed: dict[str, StoredTensor] = {}
    sources: dict[str, str] = {}
    for source, stored in tensors.items():
        name = source
        if name not in names:
            bare = name.removeprefix(_PREFIX)
            name = next((known for known in (bare, _PREFIX + name) if known in names), name)
        if name in renamed:
            raise Refusal(
                BAD_INPUT, f"{folder} stores {name} twice, as {sources[name]} and as {source}; remove one of them"
            )
        renamed[name], sources[name] = stored, source
    return renamed


def _is_beside(name: str, layers: int) -> bool:
    """Whether no state of the model's layers can depend on a tensor that the architecture does not have."""
    layer = _LAYER.match(name)
    return int(layer[1]) >= layers if layer else not name.startswith(_PREFIX)


def _wrapped(missing: str, spare: list[str]) -> str:
    """Returns the name under which a missing tensor is stored in a wrapped model; empty if it is not there."""
    tail = missing.removeprefix(_PREFIX)
    return next((name for name in spare if name.endswith("." + tail)), "")
