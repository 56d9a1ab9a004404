"""Flows of packaged tools from two Hugging Face models to CKA: as documented, and as a user would adapt them.

Each flow takes two `LlamaForCausalLM`, the ids of each prompt, and a batch size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mossa_jax.benchmarks import plain_cka

if TYPE_CHECKING:
    import torch

Values = dict[str, np.ndarray]
"""Estimator -> [L + 1] values at `embed`, 1..L-1 and `final_norm`: the states that Hugging Face returns."""


def layer_names(model: Any) -> list[str]:
    """Returns the modules whose outputs are Hugging Face's states: embedding, all blocks but the last, and the norm."""
    blocks = model.config.num_hidden_layers
    return ["model.embed_tokens", *(f"model.layers.{index}" for index in range(blocks - 1)), "model.norm"]


def padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pads prompts on the right to the longest.

    Returns:
      Ids [n, S], mask [n, S] and lengths [n], all int64.
    """
    import torch

    lengths = torch.tensor([len(ids) for ids in prompts])
    ids = torch.full((len(prompts), int(lengths.max())), 2)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), lengths


def _loader(prompts: Sequence[Sequence[int]], batch: int) -> Any:
    """Returns a loader of batches as a tokenizer makes them: {"input_ids", "attention_mask"}."""
    from torch.utils.data import DataLoader

    ids, mask, _ = padded(prompts)
    # A list serves as a data set, which its annotation does not say.
    examples: Any = [{"input_ids": row, "attention_mask": shown} for row, shown in zip(ids, mask, strict=True)]
    return DataLoader(examples, batch_size=batch)


def _last_token(model: Any) -> Any:
    """Wraps a model for tools that use hooks: takes one tensor [B, 1 + S] (length, then ids) and passes the states of
    the last tokens through `taps`."""
    import torch

    class LastToken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.taps = torch.nn.ModuleList([torch.nn.Identity() for _ in range(model.config.num_hidden_layers + 1)])

        def forward(self, packed: torch.Tensor) -> None:
            lengths, ids = packed[:, 0], packed[:, 1:]
            ids = ids[:, : int(lengths.max())]
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
            body = self.model.get_decoder()
            hidden = body(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
            rows = torch.arange(len(ids), device=ids.device)
            for tap, state in zip(self.taps, hidden, strict=True):
                tap(state[rows, lengths - 1])

    return LastToken()


def _wrapped(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> tuple[list[Any], Any, list[str]]:
    """Returns both wrappers, the loader of (tensor, 0), and the names of the taps."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    ids, _, lengths = padded(prompts)
    packed = torch.cat([lengths[:, None], ids], 1)
    loader = DataLoader(TensorDataset(packed, torch.zeros(len(packed))), batch_size=batch)
    count = models[0].config.num_hidden_layers + 1
    return [_last_token(model) for model in models], loader, [f"taps.{index}" for index in range(count)]


def _diagonal(matrix: torch.Tensor) -> Values:
    return {"debiased": matrix.diagonal().float().cpu().numpy()}


def pytorch_cka_documented(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Follows the documentation: a loader of dicts, of which only `input_ids` are read; a prompt's flattened tokens
    become its features."""
    from cka import compute_cka

    names = layer_names(models[0])
    return _diagonal(compute_cka(*models, _loader(prompts, batch), layers=names, progress=False)[0])


def pytorch_cka_wrapped(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Compares the last tokens instead."""
    from cka import compute_cka

    wrappers, loader, names = _wrapped(models, prompts, batch)
    return _diagonal(compute_cka(*wrappers, loader, layers=names, progress=False)[0])


def torch_cka_documented(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Follows the documentation: a loader of batches, which are those of a tokenizer."""
    from torch_cka import CKA

    names, loader = layer_names(models[0]), _loader(prompts, batch)
    tool = CKA(*models, "a", "b", names, names, device=str(models[0].device))
    tool.compare(loader, loader)
    return _diagonal(tool.export()["CKA"])


def torch_cka_wrapped(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Compares the last tokens instead, without the gradients that the tool would keep."""
    import torch
    from torch_cka import CKA

    wrappers, loader, names = _wrapped(models, prompts, batch)
    with torch.no_grad():
        tool = CKA(*wrappers, "a", "b", names, names, device=str(models[0].device))
        tool.compare(loader, loader)
    return _diagonal(tool.export()["CKA"])


def cka_pytorch_wrapped(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Compares the last tokens in one epoch; the default of ten epochs repeats the same sums."""
    from cka_pytorch import CKACalculator

    wrappers, loader, names = _wrapped(models, prompts, batch)
    tool = CKACalculator(*wrappers, names, names, device=models[0].device, verbose=False)
    return _diagonal(tool.calculate_cka_matrix(loader, num_epochs=1))


def ckatorch_documented(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Follows the documentation, with one epoch: the tokens of the last batch become the samples."""
    from ckatorch import CKA

    tool = CKA(*models, layer_names(models[0]), first_name="a", second_name="b", device=str(models[0].device))
    return _diagonal(tool(_loader(prompts, batch), epochs=1))


def nnsight_traced(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Traces padded batches, saves the last tokens of each module's output, and ends in float64 NumPy."""
    import nnsight
    import torch

    sides = []
    for model in models:
        traced, batches = nnsight.NNsight(model), []
        blocks = model.config.num_hidden_layers
        for start in range(0, len(prompts), batch):
            ids, mask, lengths = (tensor.to(model.device) for tensor in padded(prompts[start : start + batch]))
            rows, ends = torch.arange(len(ids), device=ids.device), lengths - 1
            with torch.no_grad(), traced.trace(ids, attention_mask=mask, use_cache=False):
                states = nnsight.save([])
                states.append(traced.model.embed_tokens.output[rows, ends])
                for index in range(blocks - 1):
                    states.append(traced.model.layers[index].output[rows, ends])
                states.append(traced.model.norm.output[rows, ends])
            batches.append(torch.stack(states).cpu())
        sides.append(torch.cat(batches, 1).numpy())
    return {"biased": np.array([plain_cka.feature_float64(x, y) for x, y in zip(*sides, strict=True)])}


class _PackagedFlow(NamedTuple):
    """A flow of an installed package.

    Attributes:
      package: its distribution.
      flow: (models, prompts, batch size) -> values.
      averages_batches: whether the tool averages over batches, and so needs large ones.
    """

    package: str
    flow: Callable[[Sequence[Any], Sequence[Sequence[int]], int], Values]
    averages_batches: bool = False


_FLOWS = {
    "nnsight, batches, float64 CKA": _PackagedFlow("nnsight", nnsight_traced),
    "pytorch-cka as documented": _PackagedFlow("pytorch-cka", pytorch_cka_documented),
    "pytorch-cka with a last-token wrapper": _PackagedFlow("pytorch-cka", pytorch_cka_wrapped, True),
    "torch_cka as documented": _PackagedFlow("torch-cka", torch_cka_documented),
    "torch_cka with a last-token wrapper": _PackagedFlow("torch-cka", torch_cka_wrapped, True),
    "cka-pytorch with a last-token wrapper": _PackagedFlow("cka-pytorch", cka_pytorch_wrapped, True),
    "ckatorch as documented, 1 epoch": _PackagedFlow("ckatorch", ckatorch_documented),
}


@contextlib.contextmanager
def hooks_restored(models: Sequence[Any]) -> Iterator[None]:
    """Removes the hooks that some tools leave on the models, and that would slow down the next flow."""
    hooks = [module._forward_hooks for model in models for module in model.modules()]
    before = [dict(module_hooks) for module_hooks in hooks]
    try:
        yield
    finally:
        for module_hooks, hooks_before in zip(hooks, before, strict=True):
            module_hooks.clear()
            module_hooks.update(hooks_before)


def packaged_flows(
    models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int, hook_batch: int
) -> tuple[dict[str, Callable[[], Values]], dict[str, str]]:
    """Returns the flows that can run here, and why the others cannot.

    Args:
      models: two `LlamaForCausalLM`.
      prompts: ids of each prompt.
      batch: prompts per batch of loops and of documented uses.
      hook_batch: rows per batch of the wrapped tools, whose estimates improve with it.
    """
    runnable: dict[str, Callable[[], Values]] = {}
    absent: dict[str, str] = {}

    def bound(packaged: _PackagedFlow) -> Callable[[], Values]:
        def run() -> Values:
            with hooks_restored(models):
                return packaged.flow(models, prompts, hook_batch if packaged.averages_batches else batch)

        return run

    for name, packaged in _FLOWS.items():
        try:
            metadata.version(packaged.package)
        except metadata.PackageNotFoundError:
            absent[name] = f"not installed (pip install {packaged.package})"
        else:
            runnable[name] = bound(packaged)
    return runnable, absent
