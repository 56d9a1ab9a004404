"""Flows written by hand on torch from two Hugging Face models to CKA: the paper's, the usual one, the best, the exact.

Each flow takes two `LlamaForCausalLM` and the ids of each prompt.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mossa_jax.benchmarks import plain_cka
from mossa_jax.benchmarks.end_to_end_tools import Values, padded
from mossa_jax.benchmarks.measuring import Times

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
    is float32 here because a CPU has nothing faster. `time_generation` measures what their script does besides.
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


def time_generation(models: Sequence[Any], prompts: Sequence[Sequence[int]], new_tokens: int) -> Times:
    """Times the answers that the authors' script has each model generate to each prompt, after the pass for the states.

    As there, `generate` takes one prompt at a time and reads it anew. Their script samples, which is greedy decoding
    here, and makes a further pass for a loss, which is left out: both favour it. Every answer has `new_tokens` tokens.

    Returns:
      The time of all answers by all models, measured once; each model gives a short one before, which is not timed.

    Raises:
      RuntimeError: an answer has another length.
    """
    import torch

    def answer(model: Any, prompt: Sequence[int], count: int) -> None:
        ids = torch.tensor([prompt]).to(model.device)
        # Random models stop by chance or never. The bound from below keeps them from choosing EOS.
        lengths = {"max_new_tokens": count, "min_new_tokens": count}
        mask = torch.ones_like(ids)
        answers = model.generate(ids, attention_mask=mask, do_sample=False, num_beams=1, pad_token_id=0, **lengths)
        if answers.shape[1] != len(prompt) + count:
            raise RuntimeError(f"{answers.shape[1] - len(prompt)} tokens generated instead of {count}")

    for model in models:
        answer(model, prompts[0], min(new_tokens, 2))
    clock, cpu = time.perf_counter(), time.process_time()
    for model in models:
        for prompt in prompts:
            answer(model, prompt, new_tokens)
    return Times(time.perf_counter() - clock, time.process_time() - cpu)


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


def kept_prefix_flow(models: Sequence[Any], prompts: Sequence[Sequence[int]], batch: int, shared: int) -> Values:
    """Does what `best_flow` does, but runs the first `shared` ids, which all prompts have in common, once per model.

    Batches hold the ids after them, and attend to the keys and values that were kept.
    """
    import torch
    from transformers import DynamicCache

    ordered = sorted(prompts, key=len)
    prefix, own = torch.tensor([ordered[0][:shared]]), [prompt[shared:] for prompt in ordered]
    sides = []
    with torch.inference_mode():
        for model in models:
            body = model.get_decoder()
            cache: Any = DynamicCache()
            body(prefix.to(model.device), use_cache=True, **{_cache_argument(body): cache})
            # [1, H, shared, K] each
            kept = [(layer.keys, layer.values) for layer in cache.layers]
            batches = [own[start : start + batch] for start in range(0, len(own), batch)]
            sides.append(torch.cat([_last_states_after(body, kept, ids) for ids in batches]).transpose(0, 1))
        values = [float(plain_cka.torch_features(x, y)) for x, y in zip(*sides, strict=True)]
    return {"biased": np.array(values)}


def _last_states_after(
    body: Any, kept: Sequence[tuple[torch.Tensor, torch.Tensor]], own: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Returns the states [B, L + 1, D] of the last tokens of prompts whose first ids are given by keys and values.

    Args:
      body: a `LlamaModel`.
      kept: keys and values [1, H, P, K] of each block: H heads of width K.
      own: the ids after the first P of each prompt, at least one.
    """
    import torch
    from transformers import DynamicCache

    ids, mask, lengths = (tensor.to(body.device) for tensor in padded(own))
    cache, (rows, positions) = DynamicCache(), ids.shape
    for block, (keys, values) in enumerate(kept):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), block)
    shared = kept[0][0].shape[2]
    attention_mask = None if bool(mask.all()) else torch.cat([mask.new_ones(rows, shared), mask], 1)
    hidden = body(
        ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(shared, shared + positions, device=ids.device)[None],
        output_hidden_states=True,
        use_cache=True,
        **{_cache_argument(body): cache},
    ).hidden_states
    index = torch.arange(rows, device=ids.device)
    return torch.stack([state[index, lengths - 1] for state in hidden], 1)


def _cache_argument(body: Any) -> str:
    """Returns the name under which a model takes keys and values: newer versions of transformers have another."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


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
