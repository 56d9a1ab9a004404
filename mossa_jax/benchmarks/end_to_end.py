"""Part `models`: from two loaded models and token ids to CKA of all layers, beside how others get there.

Time holds no loading and no compilation (every contestant runs once before), and everything else. All read the same
Hugging Face folders and the same ids; no text is generated, which favours the paper's procedure (its script generates
up to 512 tokens a prompt).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mossa_jax.benchmarks import machine
from mossa_jax.benchmarks import plain_cka as plain
from mossa_jax.benchmarks.end_to_end_tools import Values, flows, padded
from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.published import PUBLISHED, write_config
from mossa_jax.log import log
from mossa_jax.similarity import compare_states
from mossa_jax.similarity.estimators import MIN_ROWS
from mossa_jax.states import KeptStates, keep_states


@dataclasses.dataclass(frozen=True)
class Workload:
    """Two random Llamas of different seeds, `prompts` prompts of `tokens` / 2 to `tokens` * 3 / 2 random ids.

    Attributes:
      hidden, layers, heads, vocab: of the models; the feed-forward is 8/3 as wide as the states.
      batch: prompts in a batch of the Hugging Face loops.
      hook_batch: rows in a batch of the tools that compare batch by batch.
      batch_rows: packed rows in a forward pass of ours; as many as `mossa.compare` takes on a CPU.
      rounds, seed: timed rounds; of weights and prompts.
    """

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    vocab: int = 1024
    prompts: int = 512
    tokens: int = 64
    batch: int = 32
    hook_batch: int = 128
    batch_rows: int = 16
    rounds: int = 5
    seed: int = 0

    def check(self) -> None:
        """Refuses, with code 2, sizes that cannot be measured."""
        least = {"prompts": MIN_ROWS, "tokens": 2, "vocab": 8}
        for field in dataclasses.fields(self):
            value, bound = getattr(self, field.name), least.get(field.name, 0 if field.name == "seed" else 1)
            if value < bound:
                raise Refusal(2, f"{field.name} is {value}; give at least {bound}")
        if self.hidden % (2 * self.heads):
            raise Refusal(2, f"hidden is {self.hidden}, which {self.heads} heads of even width do not divide")

    def config(self) -> dict[str, Any]:
        """Of a Hugging Face folder."""
        return PUBLISHED["llama-110m"] | {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": -(-8 * self.hidden // 3 // 8) * 8,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
        }


PRESETS = {"110m": {"hidden": 768, "layers": 12, "heads": 12, "vocab": 32000, "prompts": 256}}


def draw_prompts(work: Workload) -> list[list[int]]:
    """Ids of all prompts; the first is BOS."""
    rng = np.random.default_rng(work.seed)
    lengths = rng.integers(max(work.tokens // 2, 2), work.tokens * 3 // 2 + 1, work.prompts)
    return [[1, *rng.integers(3, work.vocab, length - 1).tolist()] for length in lengths]


def write_folders(work: Workload, scratch: str, count: int = 2) -> list[str]:
    """The folders of so many random models."""
    folders = [f"{scratch}/model_{side}" for side in range(count)]
    for side, folder in enumerate(folders):
        write_config(folder, work.config(), f"{side + 1} of {count}", "float32", seed=count * work.seed + side)
    return folders


def row_length(prompts: Sequence[Sequence[int]]) -> int:
    """Positions of a packed row, as `mossa.compare` chooses them."""
    return -(-max(map(len, prompts)) // 64) * 64


def _states(model: Model, prompts: Sequence[Sequence[int]], batch_rows: int) -> KeptStates:
    """States of the prompts' last tokens of a model by itself, as `mossa.compare` computes them."""
    adapters = stack(model.architecture, [zero_adapter(model.architecture)])
    return keep_states(
        model.architecture, model.state, adapters, prompts, model.mesh,
        pool="last", row_length=row_length(prompts), batch_rows=batch_rows,
    )  # fmt: skip


def ours(models: Sequence[Model], prompts: Sequence[Sequence[int]], batch_rows: int) -> Values:
    """Both estimators, with intervals, of every layer: what `mossa.compare` does after loading and tokenizing."""
    kept = [_states(model, prompts, batch_rows) for model in models]
    found = compare_states(jnp.concatenate([side.states for side in kept]), kept[0].valid, [(0, 1)])
    value = np.delete(found.value[0], -2, axis=0)  # Hugging Face has no state of the last block before the norm
    return {"biased": value[:, 0], "debiased": value[:, 1]}


def _last_states(model, prompts: Sequence[Sequence[int]]):
    """[B, L + 1, D] states of the prompts' last tokens."""
    import torch

    ids, mask, lengths = (part.to(model.device) for part in padded(prompts))
    mask = None if bool(mask.all()) else mask
    hidden = model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    rows = torch.arange(len(ids), device=ids.device)
    return torch.stack([state[rows, lengths - 1] for state in hidden], 1)


def paper(models: Sequence, prompts: Sequence[Sequence[int]], scratch: str) -> Values:
    """The authors' procedure, rewritten: a prompt at a time, a file per prompt and layer, float64 NumPy over files.

    Their script starts a process per layer; one loop over layers costs less. Half precision on their GPU is float32
    here, where the CPU has no faster one.
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
            values.append(plain.feature_float64(x, y))
    return {"biased": np.array(values)}


def usual_loop(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """What most people write: padded batches in the given order, the whole model, float64 NumPy at the end."""
    import torch

    sides = []
    with torch.no_grad():
        for model in models:
            parts = [_last_states(model, prompts[at : at + batch]).cpu() for at in range(0, len(prompts), batch)]
            sides.append(torch.cat(parts).transpose(0, 1).numpy())
    return {"biased": np.array([plain.feature_float64(x, y) for x, y in zip(*sides, strict=True)])}


def best_loop(models: Sequence, prompts: Sequence[Sequence[int]], batch: int) -> Values:
    """The best by hand: sorted by length, so that next to nothing is padded, no head, float32 CKA in torch."""
    import torch

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    sides = []
    with torch.inference_mode():
        for model in models:
            body = model.get_decoder()
            parts = [
                _last_states(body, [prompts[index] for index in order[at : at + batch]])
                for at in range(0, len(order), batch)
            ]
            sides.append(torch.cat(parts).transpose(0, 1))
        values = [float(plain.torch_features(x, y)) for x, y in zip(*sides, strict=True)]
    return {"biased": np.array(values)}


def exact(models: Sequence, prompts: Sequence[Sequence[int]]) -> Values:
    """Float64 throughout: weights, forward passes of prompts of one length (no padding), and CKA."""
    import torch

    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    lengths = np.array([len(prompts[index]) for index in order])
    sides = []
    with torch.inference_mode():
        for model in models:
            body = model.get_decoder().double()
            parts = [
                _last_states(body, [prompts[index] for index in order[start : start + count]])
                for start, count in zip(*np.unique(lengths, return_index=True, return_counts=True)[1:], strict=True)
            ]
            sides.append(torch.cat(parts).transpose(0, 1).cpu().numpy())
            model.float()
    return {name: np.array([f(x, y) for x, y in zip(*sides, strict=True)]) for name, f in plain.ORACLES.items()}


def measure(work: Workload) -> dict[str, Any]:
    """Times every flow in turn.

    Returns:
      A JSON-ready record: sizes, tokens, and per flow seconds, the ratio to ours (over rounds), prompts and tokens a
      second, and the error of every layer against float64 of its estimator, with the values' mean; or why it is absent.

    Raises:
      Refusal: 2 for sizes that cannot be measured.
    """
    work.check()
    prompts = draw_prompts(work)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_folders(work, scratch)
        loaded = [load_model(folder) for folder in folders]
        runs: dict[str, Callable[[], Values]] = {
            "mossa_jax": lambda: ours(loaded, prompts, work.batch_rows),
        }
        absent, truth = {}, None
        if importlib.util.find_spec("torch") is None:
            absent["everything else"] = "not installed (pip install torch)"
        else:
            theirs = _torch_models(folders)
            truth = exact(theirs, prompts)
            runs |= {
                "float32 torch, sorted, no head (by hand)": lambda: best_loop(theirs, prompts, work.batch),
                "Hugging Face loop, padded (the usual)": lambda: usual_loop(theirs, prompts, work.batch),
                "the paper's procedure, no generation": lambda: paper(theirs, prompts, scratch),
            }
            found, absent = flows(theirs, prompts, work.batch, work.hook_batch)
            runs |= found
        rows = _timed(runs, truth, work.rounds)
    count = sum(map(len, prompts))
    for row in rows:
        if not row["absent"]:
            row |= {"prompts_per_s": work.prompts / row["seconds"], "tokens_per_s": 2 * count / row["seconds"]}
    rows += [{"name": name, "absent": reason} for name, reason in absent.items()]
    return {**dataclasses.asdict(work), "tokens_of_a_pass": count, "rows": rows}


def _torch_models(folders: Sequence[str]) -> list:
    from transformers import AutoModelForCausalLM

    machine.set_threads()
    with machine.quiet():
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval() for folder in folders]
    return [model.to(machine.torch_device()) for model in models]


def _timed(runs: dict[str, Callable[[], Values]], truth: Values | None, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name in list(runs):
        row = {"name": name, "absent": ""}
        rows.append(row)
        try:
            with machine.quiet():
                values = runs[name]()
        except Exception as error:  # a tool that fails is a result
            if name == "mossa_jax":
                raise
            lines = str(error).splitlines()
            row["absent"] = f"fails ({type(error).__name__}: {lines[0] if lines else ''})"
            del runs[name]
            continue
        log.info("models, %s: warm", name)
        row["estimator"] = " and ".join(values)
        row["mean"] = {estimator: machine.or_none(np.mean(value)) for estimator, value in values.items()}
        if truth is not None:
            row["errors"] = {e: [machine.or_none(x) for x in np.abs(v - truth[e])] for e, v in values.items()}
    quietly = {name: _quiet(run) for name, run in runs.items()}
    times = machine.in_turns(quietly, rounds)
    for row in rows:
        if not row["absent"]:
            row |= machine.summary(times[row["name"]], times["mossa_jax"])
    return rows


def _quiet(run: Callable[[], Values]) -> Callable[[], Values]:
    def call() -> Values:
        with machine.quiet():
            return run()

    return call


def largest_error(row: dict[str, Any]) -> float:
    """Over layers and estimators; NaN where a value is missing or nothing exact was at hand."""
    errors = [error for column in row.get("errors", {}).values() for error in column]
    return max(errors) if errors and None not in errors else float("nan")


def table(record: dict[str, Any]) -> str:
    """The record as a plain text table."""
    lines = [
        f"From two models and ids to CKA of all layers: D={record['hidden']}, {record['layers']} layers, "
        f"{record['prompts']} prompts, {record['tokens_of_a_pass']:,} tokens; medians of {record['rounds']}",
        f"{'':44}{'s':>8}{'ratio':>8}{'CPU ratio':>26}{'prompts/s':>11}{'error':>9}  estimator",
    ]
    for row in record["rows"]:
        if row["absent"]:
            lines.append(f"{row['name']:44}{row['absent']}")
            continue
        span = f"({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f})"
        lines.append(
            f"{row['name']:44}{row['seconds']:>8.2f}{row['ratio']:>8.2f} {span:16}{row['cpu_ratio']:>9.2f}"
            f"{row['prompts_per_s']:>11.1f}"
            f"{largest_error(row):>9.0e}  {row['estimator']}"
        )
    return "\n".join(lines)
