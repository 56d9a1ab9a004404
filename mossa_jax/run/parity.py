"""The base model of a run beside transformers: checked once, and kept in the run folder."""

from __future__ import annotations

import pandas as pd
from etils import epath

from mossa_jax.errors import BAD_INPUT, NO_ACCESS, Refusal
from mossa_jax.files.checked import damage, read_table, write_json, write_table
from mossa_jax.files.sums import remove_summed
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.files.locate import locate
from mossa_jax.log import log
from mossa_jax.processes import agreement
from mossa_jax.run.context import Run
from mossa_jax.states.parity import parity_or_reason, relative_differences
from mossa_jax.tokens.tokenizer import encode_prompts

_TASKS = 4
_TOKENS = 128


def base_parity(run: Run) -> pd.DataFrame | str:
    """Compares the base model with transformers, or takes the table that an earlier report left.

    All processes call this together; only the writer's return value means something.

    Returns:
      The table of `mossa_jax.states.parity`, or why the model was not checked. A reason is not final: the next report
      tries again.

    Raises:
      Refusal: 3 when the table is damaged, and this attempt has not read the rows that would make it anew.
    """
    path, reason_path = run.folder / "results/parity.parquet", run.folder / "results/parity.json"
    if all(agreement.agreed([run.folder.writer and _is_there(run, path)])):
        return read_table(path) if run.folder.writer else ""
    parity = _check_base(run)
    if run.folder.writer:
        if isinstance(parity, str):
            log.info("base model: not compared with transformers: %s", parity)
            write_json(reason_path, {"not_checked": parity})
        else:
            largest = relative_differences(parity).max()
            log.info("base model: its layer states are those of transformers, to a relative %.1e", largest)
            write_table(path, parity)
            remove_summed(reason_path)
    agreement.wait_for_all("parity")
    return parity


def _is_there(run: Run, path: epath.Path) -> bool:
    """Returns whether the table is there; where it cannot be made anew, a damaged one is, and is refused when read."""
    files = (path, path.with_suffix(".csv"))
    return all(file.exists() and (not run.is_prepared or damage(file) is None) for file in files)


def _check_base(run: Run) -> pd.DataFrame | str:
    def inputs() -> tuple[Model, list[list[int]]]:
        tokens = run.config.tokens
        texts = [task.examples("test", 1)[0].inputs for task in run.suite.tasks[:_TASKS]]
        prompts, _ = encode_prompts(run.tokenizer, texts, tokens.max_tokens, tokens.truncation)
        return run.model, [ids[:_TOKENS] for ids in prompts]

    try:
        arch = read_architecture(locate(run.base, run.config.revision, config_only=True))
        return parity_or_reason(arch, inputs)
    except Refusal as refusal:
        # The page can be written again where the model is not available.
        if refusal.code not in (BAD_INPUT, NO_ACCESS):
            raise
        return str(refusal)
