"""Recomputes cells of a finished run's results from scratch, with torch, transformers, PEFT and NumPy.

python examples/check_against_torch.py RUN [--cells=10] [--base=MODEL] [--seed=0] [--tasks=5] [--tolerance=1e-4]

The check for those who trust no table. It draws cells of results/cka by a seed: a task, a layer, the base or E, the
biased or the debiased estimate, always against the task's own specialist. For each it

  - puts the task's test prompts into the template with the tokenizer of transformers, and says so if the run read
    other token ids;
  - loads the base model in float32, and the run's adapters with PEFT;
  - runs each prompt alone, without padding, and keeps the states that compare.pool names;
  - computes CKA in float64 from the textbook formulas.

Then it prints every cell of the table beside the new value, and ends with code 1 if one differs by more than the
tolerance. Two things are taken from the run's own folder through `mossa_jax.Run`: which rows the prompts are, in which
order, and which of them belong to one item. Every task costs three forward passes of its prompts; torch runs them on
the CPU.

Layer k is the output of block k before the final norm, `embed` the embedding, `final_norm` the state behind the norm.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import mossa_jax as mossa
from mossa_jax.config import MINIATURE, PRETRAINED, TUNED, Tokens
from mossa_jax.errors import BAD_INPUT, DONE, Refusal
from mossa_jax.files.names import slug
from mossa_jax.foreign import user_path
from mossa_jax.processes.failures import explain

if TYPE_CHECKING:
    import torch

DIFFERS = 1
"""The exit code if a cell differs."""

# Texts that two templates have in common end where their contents differ.
_CONTENTS = ("", "a")
# Llama 3's chat template prints the date; a run's prompts have this one (mossa_jax/tokens/chat.py).
_DATE = "26 Jul 2024"


# ---------------------------------------------------------------- CKA, from the definitions


def biased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Computes biased linear CKA in float64.

    Args:
      x: [n, Dx] rows of one model.
      y: [n, Dy] the same rows of another one.

    References:
      Kornblith et al. 2019, "Similarity of neural network representations revisited", section 3.
    """
    x, y = _centred(x), _centred(y)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def debiased_cka(x: np.ndarray, y: np.ndarray, items: np.ndarray) -> float:
    """Computes debiased linear CKA in float64.

    Args:
      x: [n, Dx] rows of one model.
      y: [n, Dy] the same rows of another one.
      items: [n] ids; pairs of rows of one item do not count. If every row has its own this is the ratio of unbiased
        HSIC estimates, and those are computed as they were published.
    """
    x, y = _centred(x), _centred(y)
    k, m = x @ x.T, y @ y.T  # [n, n] each
    if len(np.unique(items)) == len(items):
        return float(unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m)))
    k, m = without_additive_part(k, items), without_additive_part(m, items)
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Computes the unbiased estimate of HSIC from two Gram matrices, [n, n]; their diagonals do not count.

    References:
      Song et al. 2012, "Feature selection via dependence maximization", equation 5.
    """
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    means = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + means - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def without_additive_part(gram: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Takes the best `a_i + a_j` out of a Gram matrix over pairs of rows of different items; zero on all other pairs.

    Args:
      gram: [n, n], symmetric.
      items: [n] ids.
    """
    is_pair = items[:, None] != items[None, :]  # [n, n]
    gram = np.where(is_pair, gram, 0)
    # Least squares over these pairs: for every row i, the sum over its pairs of gram_ij - a_i - a_j is zero.
    equations = np.diag(is_pair.sum(1)) + is_pair
    a = np.linalg.solve(equations, gram.sum(1))  # [n]
    return np.where(is_pair, gram - a[:, None] - a[None, :], 0)


def _centred(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - x.mean(0)


# ---------------------------------------------------------------- which cells


def draw_cells(table: pd.DataFrame, cells: int, tasks: int, seed: int) -> pd.DataFrame:
    """Draws cells of base and E against the task's own specialist.

    Args:
      table: results/cka.
      cells: how many; all, if there are fewer.
      tasks: the most tasks that they may come from, since each costs forward passes.
      seed: of the draw.

    Returns:
      Their rows, task by task.

    Raises:
      Refusal: 3 if no cell is defined.
    """
    is_own = (table["control"] == table["task"]) & table["experimental"].isin([PRETRAINED, TUNED])
    own = table[is_own & (table["undefined"] == "")]
    if own.empty:
        raise Refusal(BAD_INPUT, "results/cka has no defined cell of the base or E against a task's own specialist")
    rng = np.random.default_rng(seed)
    names = rng.permutation(sorted(own["task"].unique()))[: min(tasks, cells)].tolist()
    # Of every task a share, so that no task that is run is run for nothing.
    order = {name: rng.permutation(np.flatnonzero(own["task"] == name)).tolist() for name in names}
    most = min(cells, sum(map(len, order.values())))
    places: list[int] = []
    while len(places) < most:
        places += [order[name].pop() for name in names if order[name]][: most - len(places)]
    return own.iloc[places].sort_values(["task", "estimator", "experimental"], kind="stable")


# ---------------------------------------------------------------- prompts


def token_ids(tokenizer: Any, texts: Sequence[str], tokens: Tokens, lead: Sequence[int] = ()) -> list[list[int]]:
    """Puts texts into a run's template and encodes them, all by transformers; then cuts those that are too long.

    Args:
      tokenizer: of transformers.
      texts: the contents.
      tokens: the run's template, the most ids of a prompt, and what a prompt that is too long loses.
      lead: ids in front of every prompt that the tokenizer itself does not put there.
    """
    whole = [[*lead, *_encode(tokenizer, text, tokens.template)] for text in texts]
    if tokens.truncation == "paper":
        return [ids[: tokens.max_tokens] for ids in whole]
    empty, letter = ([*lead, *_encode(tokenizer, text, tokens.template)] for text in _CONTENTS)
    shared = next((i for i, (a, b) in enumerate(zip(empty, letter, strict=False)) if a != b), len(empty))
    # The template's head stays, and the end of the prompt; the head takes three quarters at most.
    head = min(shared, 3 * tokens.max_tokens // 4)
    return [
        ids if len(ids) <= tokens.max_tokens else ids[:head] + ids[len(ids) - (tokens.max_tokens - head) :]
        for ids in whole
    ]


def _encode(tokenizer: Any, text: str, template: str) -> list[int]:
    if template == "chat":
        message = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, date_string=_DATE)
        return tokenizer(prompt, add_special_tokens=False).input_ids
    if template == "llama2":
        from transformers.models.llama.tokenization_llama import DEFAULT_SYSTEM_PROMPT

        text = f"[INST] <<SYS>>\n{DEFAULT_SYSTEM_PROMPT}\n<</SYS>>\n\n{text} [/INST]"
    return tokenizer(text).input_ids


def prompts_of(run: mossa.Run, models: TorchModels, task: str) -> tuple[list[list[int]], np.ndarray]:
    """Returns the token ids of a task's test prompts, and [n] the item of each.

    Some tokenizers of Llama's kind have lost the BOS that their model was trained with, and a run puts the model's own
    in front. Prompts may begin with it or not, but all of them alike.

    Raises:
      Refusal: 3 if the run read other token ids.
    """
    own = run.opened_models.test_prompts(task)
    tokens, lead = run.config.tokens, [int(own.ids[0][0])]
    is_put_there = tokens.template == "chat" or lead != [models.bos] or models.tokenizer("a").input_ids[:1] == lead
    texts = [example.inputs for example in run.examples(task)]
    ids = token_ids(models.tokenizer, texts, tokens, () if is_put_there else lead)
    for number, (mine, theirs) in enumerate(zip(ids, own.ids, strict=True)):
        if mine != theirs.tolist():
            raise Refusal(
                BAD_INPUT,
                f"{task}: prompt {number} is other token ids in transformers ({len(mine)}) than in the run "
                f"({len(theirs)}); the tokenizer of --base is another one, or the run encodes wrongly",
            )
    return ids, own.items


# ---------------------------------------------------------------- states


class TorchModels:
    """The base in float32 with the run's adapters on it, one at a time."""

    def __init__(self, run: mossa.Run, base: str, revision: str | None):
        """Loads the base and its tokenizer, `tokenizer`; `bos` is the id that its config.json names, if it does.

        Args:
          run: whose adapters will be loaded.
          base: model folder or hub id.
          revision: of a hub id.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._run = run
        self.tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, dtype=torch.float32, attn_implementation="eager"
        )
        self._model: Any = model.eval()
        self.bos: int | None = model.config.bos_token_id
        # The embedding, the blocks and the final norm, without the head.
        self._decoder: Any = self._model.base_model

    def states(
        self, model: str, layers: Sequence[str], ids: Sequence[Sequence[int]], pool: str
    ) -> dict[str, np.ndarray]:
        """Computes the pooled states of prompts at some layers.

        Args:
          model: `pretrained`, `tuned` or a task.
          layers: names of layers.
          ids: token ids of n prompts.
          pool: "last" or "mean".

        Returns:
          Layer name -> [n, D] float32.

        Raises:
          Refusal: 3 if there is no such adapter.
        """
        import torch

        rows: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}

        def keep(layer: str) -> Callable[[Any, Any, Any], None]:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                # [1, S, D]; a block of some versions returns a tuple that begins with its states.
                states = (output[0] if isinstance(output, tuple) else output)[0]
                rows[layer].append((states[-1] if pool == "last" else states.mean(0)).numpy().copy())

            return hook

        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._adapted(model))
            for layer in layers:
                handle = self._module(layer).register_forward_hook(keep(layer))
                stack.callback(handle.remove)
            for prompt in ids:
                self._decoder(torch.tensor([list(prompt)]), use_cache=False)
        return {layer: np.stack(states) for layer, states in rows.items()}

    def _module(self, layer: str) -> torch.nn.Module:
        """Returns the module whose output is a layer's state."""
        if layer == "embed":
            return self._decoder.embed_tokens
        return self._decoder.norm if layer == "final_norm" else self._decoder.layers[int(layer) - 1]

    @contextlib.contextmanager
    def _adapted(self, model: str) -> Iterator[None]:
        """Puts a model's adapter onto the base, and takes it off again; `pretrained` has none."""
        if model == PRETRAINED:
            yield
            return
        from peft import PeftModel

        folder = self._run.folder / "adapters" / slug(model)
        if not folder.exists():
            raise Refusal(BAD_INPUT, f"{folder} is not there; only models that a run tuned as adapters are checked")
        # PEFT exchanges modules within the decoder, which stays the same object.
        adapted = PeftModel.from_pretrained(self._model, str(folder)).eval()
        try:
            yield
        finally:
            self._model = adapted.unload()


# ---------------------------------------------------------------- the check


def check_run(run: mossa.Run, cells: pd.DataFrame, models: TorchModels) -> pd.DataFrame:
    """Recomputes cells.

    Args:
      run: a finished run.
      cells: rows of results/cka, from `draw_cells`.
      models: the base and the adapters.

    Returns:
      `task, layer, model, estimator, table, torch, difference`, one row per cell.

    Raises:
      Refusal: 3 if prompts or adapters are not those of the table.
    """
    rows = []
    for task, own in cells.groupby("task", sort=False):
        ids, items = prompts_of(run, models, str(task))
        counted = set(own["n"])
        if counted != {len(ids)}:
            raise Refusal(BAD_INPUT, f"{task}: the table counts {sorted(counted)} prompts, but {len(ids)} are there")
        layers = list(dict.fromkeys(own["layer"].astype(str)))
        states = {
            name: models.states(name, layers, ids, run.config.compare.pool)
            for name in (*dict.fromkeys(own["experimental"]), str(task))
        }
        for _, cell in own.iterrows():
            layer = str(cell["layer"])
            x, y = states[cell["experimental"]][layer], states[str(task)][layer]
            # A run that streams sums knows no items: there every row counts for itself.
            labels = items if cell["units"] < len(ids) else np.arange(len(ids))
            value = biased_cka(x, y) if cell["estimator"] == "biased" else debiased_cka(x, y, labels)
            rows.append((task, layer, cell["experimental"], cell["estimator"], cell["cka"], value))
    table = pd.DataFrame(rows, columns=["task", "layer", "model", "estimator", "table", "torch"])
    return table.assign(difference=(table["table"] - table["torch"]).abs())


def _opened(folder: str) -> mossa.Run:
    """Opens a finished run whose states can be recomputed here."""
    run = mossa.Run(folder)
    if not run.is_finished:
        raise Refusal(
            BAD_INPUT, f"{folder} is not finished: it has no report.html; mossa run --workdir={folder} continues it"
        )
    if run.config.compare.pool == "all":
        raise Refusal(BAD_INPUT, f"{folder} compares tokens (compare.pool=all); this check knows 'last' and 'mean'")
    return run


def _base(run: mossa.Run, base: str) -> tuple[str, str | None]:
    """Returns the folder or hub id of the base, and its revision."""
    if base:
        return user_path(base, "--base"), None
    if run.config.base == MINIATURE:
        # The embedded miniature has no name outside of this package.
        return str(run.opened_models.base.folder), None
    return run.config.base, run.config.revision or None


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recomputes cells of a run's results with torch and PEFT.")
    parser.add_argument("run", help="run folder, or a variant of one")
    parser.add_argument("--cells", type=int, default=10, help="cells to draw (%(default)s)")
    parser.add_argument("--tasks", type=int, default=5, help="the most tasks that they come from (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (%(default)s)")
    parser.add_argument("--base", default="", help="base model, folder or hub id, if not where the run found it")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference (%(default)s)")
    arguments = parser.parse_args(words)
    for name in ("cells", "tasks"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)}: must be at least 1")
    if arguments.seed < 0:
        parser.error(f"--seed={arguments.seed}: must be at least 0")
    return arguments


def _check(arguments: argparse.Namespace) -> int:
    run = _opened(arguments.run)
    cells = draw_cells(run.cka, arguments.cells, arguments.tasks, arguments.seed)
    models = TorchModels(run, *_base(run, arguments.base))
    table = check_run(run, cells, models)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3e}" if value < 1e-3 else f"{value:.6f}"))
    # A value that is not finite differs, too.
    differing = int((~(table["difference"] <= arguments.tolerance)).sum())
    print(
        f"{len(table)} cells of {table['task'].nunique()} tasks: largest difference {table['difference'].max():.1e}; "
        f"{differing} above {arguments.tolerance:g}"
    )
    return DIFFERS if differing else DONE


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = _arguments(words)
    try:
        return _check(arguments)
    except Exception as error:
        refusal = explain(error)
        if refusal is None:
            raise
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main())
