"""Flows written by hand on torch from two Hugging Face models to CKA: the paper's, the usual one, the best, the exact.

Each flow takes two `LlamaForCausalLM` and the ids of each prompt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.benchmarks import plain_cka
from mossa_jax.benchmarks.end_to_end_tools import Values, padded

if TYPE_CHECKING:
    import torch


def _last_states(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Returns the states [B, L + 1, D] of the prompts' last tokens."""
    import torch

    ids, mask, lengths = (tensor.to(model.device) for tensor in padded(prompts))
    attention_mask = None if bool(mask.all()) else mask
    hidden = model(ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False).hidden_states
    rows = torch.arange(len(ids), device=ids.device)
    return torch.stack([state[rows, lengths - 1] for state in hidden], 1)


def paper_flow(models: Sequence[Any], prompts: Sequence[Sequence[int]], scratch: str) -> Values:
    """Follows the authors' procedure, rewritten: one prompt at a time, one file per prompt and layer, float64 NumPy.

    Their script starts one process per layer; a loop over layers costs less. Their GPU runs in half precision, which
    is float32 here because a CPU has nothing faster.
    """
    import torch

    with torch.no_grad(), tempfile.TemporaryDirectory(dir=scratch) as folder:
        for side, model in enumerate(models):
            for number, prompt in enumerate(prompts):
                ids = torch.tensor([prompt]).to(model.device)
                states = model(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
                for layer, state in enumerate(states):
                    np.save(f"{folder}/{side}-{layer}-{number}.npy", state[0, -1].float().cpu().numpy())
        values = []
        for layer in range(len(states)):
            x, y = (
                np.stack([np.load(f"{folder}/{side}-{layer}-{number}.npy") for number in range(len(prompts))])
                for side in range(2)
            )
            values.append(plain_cka.feature_float64(x, y))
    return {"biased": np.array(values)}


def usual_flow(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Does what most people write: padded batches in the given order, the whole model, and float64 NumPy at the end."""
    import torch

    sides = []
    with torch.no_grad():
        for model in models:
            batches = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
            sides.append(torch.cat([_last_states(model, ids).cpu() for ids in batches]).transpose(0, 1).numpy())
    return {"biased": np.array([plain_cka.feature_float64(x, y) for x, y in zip(*sides, strict=True)])}


def best_flow(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """Does the best that can be written by hand: sorted by length (little padding), no head, float32 CKA in torch."""
    import torch

    ordered = sorted(prompts, key=len)
    sides = []
    with torch.inference_mode():
        for model in models:
            body = model.get_decoder()
            batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
            sides.append(torch.cat([_last_states(body, ids) for ids in batches]).transpose(0, 1))
        values = [float(plain_cka.torch_features(x, y)) for x, y in zip(*sides, strict=True)]
    return {"biased": np.array(values)}


def exact_values(models: Sequence[Any], prompts: Sequence[Sequence[int]]) -> Values:
    """Computes both estimators in float64: weights, forward passes without padding (prompts of one length), and CKA."""
    import torch

    ordered = sorted(prompts, key=len)
    _, starts, counts = np.unique([len(ids) for ids in ordered], return_index=True, return_counts=True)
    sides = []
    with torch.inference_mode():
        for model in models:
            body = model.get_decoder().double()
            batches = [ordered[start : start + count] for start, count in zip(starts, counts, strict=True)]
            sides.append(torch.cat([_last_states(body, ids) for ids in batches]).transpose(0, 1).cpu().numpy())
            model.float()
    return {
        estimator: np.array([oracle(x, y) for x, y in zip(*sides, strict=True)])
        for estimator, oracle in plain_cka.ORACLES.items()
    }
