"""Flows of packaged tools from two Hugging Face models to CKA, as their documents say and as somebody adapts them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import numpy as np

from mossa_jax.benchmarks import plain_cka as plain

Values = dict[str, np.ndarray]
"""Estimator -> [L + 1] values at `embed`, 1..L-1 and `final_norm`: the states that Hugging Face returns."""


def layer_names(model) -> list[str]:
    """Modules whose outputs are the states that Hugging Face returns: embedding, all blocks but the last, the norm."""
    blocks = model.config.num_hidden_layers
    return ["model.embed_tokens", *(f"model.layers.{index}" for index in range(blocks - 1)), "model.norm"]


def padded(prompts: Sequence[Sequence[int]]):
    """Ids and mask [n, S] of all prompts, padded on the right to the longest."""
    import torch

    lengths = torch.tensor([len(ids) for ids in prompts])
    ids = torch.full((len(prompts), int(lengths.max())), 2)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), lengths


def _loader(prompts: Sequence[Sequence[int]], batch: int):
    """Batches as a tokenizer gives them: {"input_ids", "attention_mask"}."""
    from torch.utils.data import DataLoader

    ids, mask, _ = padded(prompts)
    return DataLoader([{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)], batch_size=batch)


def _last_token(model):
    """A wrapper that hooks can use: one tensor in (length, then ids), last tokens of all states through `taps`."""
    import torch

    class LastToken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.taps = torch.nn.ModuleList([torch.nn.Identity() for _ in range(model.config.num_hidden_layers + 1)])

        def forward(self, packed):
            lengths, ids = packed[:, 0], packed[:, 1:]
            ids = ids[:, : int(lengths.max())]
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
            body = self.model.get_decoder()
            hidden = body(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
            rows = torch.arange(len(ids), device=ids.device)
            for tap, state in zip(self.taps, hidden, strict=True):
                tap(state[rows, lengths - 1])

    return LastToken()


def _wrapped(models: Sequence, prompts: Sequence[Sequence[int]], batch: int):
    """Both wrappers, the loader of (tensor, 0) and the names of the taps."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    ids, _, lengths = padded(prompts)
    packed = torch.cat([lengths[:, None], ids], 1)
    loader = DataLoader(TensorDataset(packed, torch.zeros(len(packed))), batch_size=batch)
    count = models[0].config.num_hidden_layers + 1
    return [_last_token(model) for model in models], loader, [f"taps.{index}" for index in range(count)]


def _diagonal(matrix) -> Values:
    return {"debiased": matrix.diagonal().float().cpu().numpy()}


def pytorch_cka_documented(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Its dict loader: reads `input_ids` only, and takes the flattened tokens of a prompt as its features."""
    from cka import compute_cka

    names = layer_names(models[0])
    return _diagonal(compute_cka(*models, _loader(prompts, batch), layers=names, progress=False)[0])


def pytorch_cka_wrapped(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """The same over the last tokens."""
    from cka import compute_cka

    wrappers, loader, names = _wrapped(models, prompts, batch)
    return _diagonal(compute_cka(*wrappers, loader, layers=names, progress=False)[0])


def torch_cka_documented(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Its loader of batches, given what a tokenizer gives."""
    from torch_cka import CKA

    names, loader = layer_names(models[0]), _loader(prompts, batch)
    tool = CKA(*models, "a", "b", names, names, device=str(models[0].device))
    tool.compare(loader, loader)
    return _diagonal(tool.export()["CKA"])


def torch_cka_wrapped(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """The same over the last tokens, without the gradients that it would keep by itself."""
    import torch
    from torch_cka import CKA

    wrappers, loader, names = _wrapped(models, prompts, batch)
    with torch.no_grad():
        tool = CKA(*wrappers, "a", "b", names, names, device=str(models[0].device))
        tool.compare(loader, loader)
    return _diagonal(tool.export()["CKA"])


def cka_pytorch_wrapped(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Last tokens, one epoch (its default of ten repeats the same sums)."""
    from cka_pytorch import CKACalculator

    wrappers, loader, names = _wrapped(models, prompts, batch)
    tool = CKACalculator(*wrappers, names, names, device=models[0].device, verbose=False)
    return _diagonal(tool.calculate_cka_matrix(loader, num_epochs=1))


def ckatorch_documented(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Its dict loader, one epoch: takes the tokens of the last batch as samples."""
    from ckatorch import CKA

    tool = CKA(*models, layer_names(models[0]), first_name="a", second_name="b", device=str(models[0].device))
    return _diagonal(tool(_loader(prompts, batch), epochs=1))


def nnsight_traced(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Padded batches traced, last tokens of every module's output saved, float64 NumPy at the end."""
    import nnsight
    import torch

    sides = []
    for model in models:
        traced, parts = nnsight.NNsight(model), []
        blocks = model.config.num_hidden_layers
        for at in range(0, len(prompts), batch):
            ids, mask, lengths = (part.to(model.device) for part in padded(prompts[at : at + batch]))
            rows, ends = torch.arange(len(ids), device=ids.device), lengths - 1
            with torch.no_grad(), traced.trace(ids, attention_mask=mask, use_cache=False):
                states = nnsight.save([])
                states.append(traced.model.embed_tokens.output[rows, ends])
                for index in range(blocks - 1):
                    states.append(traced.model.layers[index].output[rows, ends])
                states.append(traced.model.norm.output[rows, ends])
            parts.append(torch.stack(states).cpu())
        sides.append(torch.cat(parts, 1).numpy())
    return {"biased": np.array([plain.feature_float64(x, y) for x, y in zip(*sides, strict=True)])}


_FLOWS = {
    "nnsight, batches, float64 CKA": ("nnsight", nnsight_traced, "batch"),
    "pytorch-cka as documented": ("pytorch-cka", pytorch_cka_documented, "batch"),
    "pytorch-cka with a last-token wrapper": ("pytorch-cka", pytorch_cka_wrapped, "hook"),
    "torch_cka as documented": ("torch-cka", torch_cka_documented, "batch"),
    "torch_cka with a last-token wrapper": ("torch-cka", torch_cka_wrapped, "hook"),
    "cka-pytorch with a last-token wrapper": ("cka-pytorch", cka_pytorch_wrapped, "hook"),
    "ckatorch as documented, 1 epoch": ("ckatorch", ckatorch_documented, "batch"),
}
"""Name -> (distribution, flow, which batch it takes: that of loops, or that of tools which compare by batches)."""


@contextlib.contextmanager
def hooks_restored(models: Sequence) -> Iterator[None]:
    """Takes away the hooks that some tools leave on the models, which would slow down whoever comes next."""
    hooks = [module._forward_hooks for model in models for module in model.modules()]
    before = [dict(own) for own in hooks]
    try:
        yield
    finally:
        for own, kept in zip(hooks, before, strict=True):
            own.clear()
            own.update(kept)


def flows(
    models: Sequence, prompts: Sequence[Sequence[int]], batch: int, hook_batch: int
) -> tuple[dict[str, Callable[[], Values]], dict[str, str]]:
    """The flows that can run here, and why others cannot.

    Args:
      models: two `LlamaForCausalLM`.
      prompts: ids of each prompt.
      batch: prompts in a batch of loops and of documented uses.
      hook_batch: rows in a batch of the wrapped tools, whose estimate improves with it.
    """
    found, absent = {}, {}

    def bound(flow: Callable, size: int) -> Callable[[], Values]:
        def run() -> Values:
            with hooks_restored(models):
                return flow(models, prompts, size)

        return run

    for name, (package, flow, kind) in _FLOWS.items():
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            absent[name] = f"not installed (pip install {package})"
        else:
            found[name] = bound(flow, batch if kind == "batch" else hook_batch)
    return found, absent
