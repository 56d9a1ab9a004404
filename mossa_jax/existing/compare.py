"""Comparisons of models that exist already: `mossa.compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mossa_jax.config import PRETRAINED
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.existing.passes import (
    ALL,
    BatchProgress,
    batch_count,
    check_tuned,
    pass_config,
    stack_adapters,
)
from mossa_jax.existing.prompts import (
    Reading,
    check_choice,
    check_draws,
    check_texts,
    items_of_prompts,
    warn_of_repeats,
)
from mossa_jax.foreign import user_path
from mossa_jax.llama.adapters import Adapter
from mossa_jax.llama.files.adapted import load_adapted
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.files.locate import locate
from mossa_jax.llama.files.peft import check_holds_none, is_adapter
from mossa_jax.log import log
from mossa_jax.similarity import Similarities, compare_states, engine
from mossa_jax.similarity.cells import add_q_values, similarity_cells
from mossa_jax.similarity.checks import check_labels
from mossa_jax.similarity.estimators import MIN_ROWS
from mossa_jax.similarity.streamed.forward import stream_similarities
from mossa_jax.states import POOLS, KeptStates, PassShape, keep_states
from mossa_jax.states.finite import find_not_finite, refuse_not_finite

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("layer", "estimator", "cka", "low", "high", "n", "undefined")
"""Columns of a table of `compare` and `compare_saved`."""

NULL_COLUMNS = ("null_mean", "p", "q")
"""Further columns of a table with permutations, before `undefined`."""

PROMPTS = "prompts"
"""First column of a table over several lists of prompts: the name of the list."""

_PAIRS = [(0, 1)]
# Prompts that are looked at for the layer where states stop being finite.
_LOOKED_AT = 64


def compare(
    base: str | Model,
    experimental: str,
    control: str,
    prompts: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    pool: str = "last",
    template: str = "none",
    max_tokens: int | None = None,
    truncation: str = "keep_end",
    dtype: str = "float32",
    revision: str = "",
    items: Sequence | str | Mapping[str, Sequence | None] | None = None,
    templates: Sequence[int] | Mapping[str, Sequence[int] | None] | None = None,
    permutations: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Computes CKA between two models at every layer, over the same prompts.

    Args:
      base: the base model: a folder, a hub id or a loaded `Model`. Its tokenizer encodes the prompts for both sides.
      experimental: "pretrained" (the base itself), a PEFT adapter folder for the base, or a whole model.
      control: an adapter folder for the base, or a whole model.
      prompts: texts, at least 4; or several such lists by name, which are compared one after another.
      pool: "last" compares the states of a prompt's last token, "mean" the means over its tokens. "all" makes every
        token a row: sums are streamed, so that there may be any number of rows, but there are no intervals and no
        permutations; both sides must be adapters over the base, or the base itself.
      template: as in `layer_states`.
      max_tokens: as in `layer_states`.
      truncation: as in `layer_states`.
      dtype: number type of weights and compute, as in `load_model`.
      revision: of the base if it is a hub id.
      items: one id per prompt: prompts with the same one are related, as questions on one passage are. Pairs of them
        are left out of the debiased value, and intervals and permutations rest on items. "guess" finds prompts that
        share long texts, as a run does for rows that name no item. By name where there are several lists.
      templates: one whole number per prompt, that of its wording, -1 if unknown: permutations exchange rows within
        their template. By name where there are several lists.
      permutations: how many random re-pairings of the prompts p rests on; 0 leaves p out.
      seed: of the re-pairings; a run takes its own `seed`.

    Returns:
      One row per layer name and estimator, with the columns `layer, estimator, cka, low, high, n, undefined`.
      `estimator` is "biased" (the MOSSA paper's) or "debiased"; `low` and `high` are the ends of the 95 % jackknife
      interval; `n` is the number of prompts that counted, with pool "all" of tokens. If `undefined` holds a reason, the
      figures are NaN. With permutations there are three columns more before `undefined`: `null_mean` (the mean over
      re-pairings), `p` (one-sided) and `q` (p after Benjamini and Hochberg over all cells of an estimator; NaN at
      layers whose states are the same on both sides, which is no test). With several lists, a first column `prompts`
      names the list.

    Raises:
      Refusal: 2 for an option that does not exist, or options that exclude each other; 3 for a model, adapter or prompt
        that cannot be read, and for sides with different numbers of layers or templates, or that read a prompt as
        different ids; 4 if access to a model is denied; 5 for an adapter that is not finite, and where so many states
        are not that cells would be undefined, naming the side and its first such layer.

    Example:
      >>> import mossa_jax as mossa
      >>> questions = [line.strip() for line in open("questions.txt")]
      >>> table = mossa.compare("meta-llama/Llama-2-7b-hf", "pretrained", "adapters/boolq", questions, pool="mean")
      >>> table[table.estimator == "debiased"].set_index("layer").cka.idxmin()  # where tuning changed most
    """
    # All that can be refused without a model is refused before one is loaded.
    reading = Reading(template, max_tokens, truncation)
    lists = _prompt_lists(prompts, items, templates)
    check_draws(permutations, seed)
    _check_options(pool, permutations, [one for one in lists if one.items is not None])
    base = base if isinstance(base, Model) else user_path(base, "base")
    experimental = user_path(experimental, "experimental")
    control = user_path(control, "control")
    for name in (base, experimental, control):
        if isinstance(name, str) and name != PRETRAINED and not is_adapter(name):
            check_holds_none(name)
            locate(name, revision if name == base else "", config_only=True)
    model = base if isinstance(base, Model) else load_model(base, dtype, revision=revision)
    sides = [_load_side(model, experimental, dtype), _load_side(model, control, dtype)]
    for name in (experimental, control):
        if name != PRETRAINED:
            check_tuned(model, name, template)
    texts = {one.name: one.texts for one in lists}
    ids = reading.encode(model, texts)
    for side in sides:
        if side.model is not model:
            reading.check_other(model, side.model, texts, ids)
    depths = [side.model.architecture.layers for side in sides]
    if depths[0] != depths[1]:
        raise Refusal(BAD_INPUT, f"{experimental} has {depths[0]} layers and {control} {depths[1]}; they must agree")
    if pool == ALL and sides[0].model is not sides[1].model:
        raise Refusal(
            BAD_CONFIG,
            "pool 'all' compares adapters over one base, not whole models, nor adapters that bring weights of it; "
            "give last or mean",
        )
    warn_of_repeats(ids)
    comparison = _Comparison(sides, pool, ids, permutations, seed)
    tables = [comparison.table(one) for one in lists]
    return _join(tables, comparison.untouched, permutations > 0, isinstance(prompts, Mapping))


@dataclass(frozen=True)
class _PromptList:
    """Prompts with what is known of each; `name` is empty where there is one list."""

    name: str
    texts: Sequence[str]
    items: np.ndarray | None
    templates: np.ndarray | None


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: a model with an adapter; the empty adapter is the model itself."""

    name: str
    model: Model
    adapter: Adapter


class _Comparison:
    """Two sides over several lists of prompts, which share programs.

    Attributes:
      untouched: names of the layers whose states were the same on both sides, over all lists so far; None before the
        first one.
    """

    def __init__(
        self, sides: Sequence[_Side], pool: str, ids: Mapping[str, list[list[int]]], permutations: int, seed: int
    ):
        """Chooses shapes and engine; `ids` are the encoded prompts of each list by its name."""
        self._sides, self._ids, self._draws = sides, ids, (permutations, seed)
        self._model = sides[0].model
        self._is_shared = sides[0].model is sides[1].model
        self._config = pass_config(self._model, pool, list(ids.values()))
        self.untouched: set[str] | None = None
        models = [side.model for side in sides][: 1 if self._is_shared else 2]
        batches = sum(
            batch_count(self._shapes(model), self._config.pack(model.architecture, prompts).sizes)
            for model in models
            for prompts in ids.values()
        )
        prompts = sum(map(len, ids.values()))
        log.info("compare: %s prompts in %d batches; programs are compiled at the first one", f"{prompts:,}", batches)
        self._progress = BatchProgress("compare", batches)

    def _shapes(self, model: Model) -> tuple[PassShape, ...]:
        arch = model.architecture
        return self._config.shapes(
            [self._config.pack(arch, prompts).sizes for prompts in self._ids.values()], model.mesh
        )

    @cached_property
    def _is_streamed(self) -> bool:
        """Whether sums are streamed, since every token is a row or since states of all prompts do not fit."""
        if self._config.pool == ALL or not self._is_shared:
            return self._config.pool == ALL
        arch, most = self._model.architecture, max(map(len, self._ids.values()))
        costs = engine.estimate_costs(
            2, arch.layers + 2, most, arch.hidden, _PAIRS, self._model.mesh.size, self._config.pool
        )
        is_streamed = engine.choose(costs) == engine.MOMENTS
        if is_streamed and self._draws[0]:
            raise Refusal(
                BAD_CONFIG,
                f"permutations={self._draws[0]} need the states of all {most:,} prompts, which do not fit the device; "
                "give fewer prompts, or permutations=0",
            )
        return is_streamed

    def table(self, prompts: _PromptList) -> pd.DataFrame:
        """Returns the cells of one list of prompts."""
        import pandas as pd

        similarities = self._streamed(prompts) if self._is_streamed else self._kept(prompts)
        cells = similarity_cells(similarities, _PAIRS, self._model.architecture.state_names())[0]
        return pd.DataFrame(cells).assign(**{PROMPTS: prompts.name})

    def _streamed(self, prompts: _PromptList) -> Similarities:
        adapters = stack_adapters(self._model, [side.adapter for side in self._sides])
        ids = self._ids[prompts.name]
        similarities = stream_similarities(
            self._model,
            adapters,
            ids,
            self._config,
            _PAIRS,
            shapes=self._shapes(self._model),
            after_batch=self._progress.after_batch(prompts.name),
        )
        if similarities.dropped:
            # Sums keep no states, so some of them are computed again for the message.
            config = replace(self._config, pool="mean")
            self._look_at_dropped(keep_states(self._model, adapters, ids[:_LOOKED_AT], config), similarities)
        return similarities

    def _look_at_dropped(self, kept: KeptStates, similarities: Similarities) -> None:
        """Names side and layer of states that are not finite; refuses, with code 5, where they leave too few rows."""
        where = find_not_finite(kept)
        if where is None:
            log.warning("compare: %s rows are not finite and left out", f"{similarities.dropped:,}")
            return
        side = self._sides[where.model]
        if similarities.units < MIN_ROWS:
            refuse_not_finite(side.name, where, side.model)
        log.warning(
            "compare: %s rows are left out on both sides: states of %s are not finite from layer %s on",
            *(f"{similarities.dropped:,}", side.name, where.layer),
        )

    def _kept(self, prompts: _PromptList) -> Similarities:
        kept = self._states(prompts.name)
        states = kept.states
        names = {name for name, same in zip(kept.names, np.asarray(_same_states(states)), strict=True) if same}
        self.untouched = names if self.untouched is None else self.untouched & names
        # States have slots behind the prompts, which belong to no item and no template.
        behind = (0, len(kept.valid) - len(prompts.texts))
        labels = [
            None if column is None else np.pad(column, behind, constant_values=-1)
            for column in (prompts.items, prompts.templates)
        ]
        permutations, seed = self._draws
        note = f", {permutations} permutations" if permutations else ""
        log.info("compare%s: similarities at %d layers%s", prompts.name and f" {prompts.name}", len(kept.names), note)
        similarities = compare_states(
            states,
            kept.valid,
            _PAIRS,
            permutations=permutations,
            seed=seed,
            rows=kept.rows,
            items=labels[0],
            templates=labels[1],
        )
        if similarities.dropped:
            self._look_at_dropped(kept, similarities)
        return similarities

    def _states(self, name: str) -> KeptStates:
        """Returns the states of both sides, [2, L + 2, n, D]."""
        after_batch = self._progress.after_batch(name)

        def keep(model: Model, adapters: Sequence[Adapter]) -> KeptStates:
            stacked, shapes = stack_adapters(model, adapters), self._shapes(model)
            return keep_states(model, stacked, self._ids[name], self._config, shapes, after_batch)

        if self._is_shared:
            return keep(self._model, [side.adapter for side in self._sides])
        both = [keep(side.model, [side.adapter]) for side in self._sides]
        # The narrower side gets zero columns, which change no inner product.
        width = max(side.states.shape[-1] for side in both)
        padded = [jnp.pad(s.states, ((0, 0), (0, 0), (0, 0), (0, width - s.states.shape[-1]))) for s in both]
        return replace(both[0], states=jnp.concatenate(padded))


@jax.jit
def _same_states(states: Float[Array, "2 K n D"]) -> Bool[Array, " K"]:
    """Tells at which layers two models have the same states."""
    return (states[0] == states[1]).all(axis=(1, 2))


def null_columns(table: pd.DataFrame, untouched: Sequence[str]) -> pd.DataFrame:
    """Adds the column `q` to cells with a column `p`; `untouched` are layers that are no test."""
    # Every cell is a matched one: there is a single pair of models.
    return add_q_values(table.assign(task="", control=""), list(untouched))


def _join(tables: Sequence[pd.DataFrame], untouched: set[str] | None, has_null: bool, has_names: bool) -> pd.DataFrame:
    """Joins the cells of all lists of prompts in the columns that were asked for."""
    import pandas as pd

    table = pd.concat(tables, ignore_index=True)
    columns = list(COLUMNS)
    if has_null:
        table = null_columns(table, sorted(untouched or ()))
        columns[-1:-1] = NULL_COLUMNS
    return table[[PROMPTS, *columns] if has_names else columns]


def _prompt_lists(prompts: Any, items: Any, templates: Any) -> list[_PromptList]:
    """Checks prompts and what is known of them, and returns them list by list; arguments as in `compare`."""
    if not isinstance(prompts, Mapping):
        prompts, items, templates = {"": prompts}, {"": items}, {"": templates}
    if not prompts:
        raise Refusal(BAD_INPUT, "there are no lists of prompts; give at least one")
    for option, labels in (("items", items), ("templates", templates)):
        unknown = sorted(set(labels) - set(prompts)) if isinstance(labels, Mapping) else []
        if unknown:
            raise Refusal(
                BAD_INPUT, f"{option} name a list {unknown[0]!r} that prompts do not have; name the same lists"
            )
        if labels is not None and not isinstance(labels, Mapping | str):
            raise Refusal(BAD_INPUT, f"{option} are no dictionary, but prompts are; give them by the same names")
    lists = []
    for name, texts in prompts.items():
        check_texts(texts)
        own = items.get(name) if isinstance(items, Mapping) else items
        wordings = templates.get(name) if isinstance(templates, Mapping) else templates
        one = _PromptList(name, texts, items_of_prompts(own, texts), None if wordings is None else np.asarray(wordings))
        check_labels(one.items, one.templates, len(texts))
        # Ids of any kind become numbers, so that slots without a prompt can have one, too.
        numbers = None if one.items is None else np.unique(one.items, return_inverse=True)[1].reshape(-1)
        lists.append(_PromptList(name, texts, numbers, one.templates))
    return lists


def _check_options(pool: str, permutations: int, with_items: Sequence[_PromptList]) -> None:
    """Refuses, with code 2, options that do not exist or exclude each other."""
    check_choice("pool", pool, (*POOLS, ALL))
    if pool == ALL and permutations:
        raise Refusal(
            BAD_CONFIG, f"permutations={permutations} do not go with pool 'all', which keeps no rows; give last or mean"
        )
    if pool == ALL and with_items:
        raise Refusal(BAD_CONFIG, "items do not go with pool 'all', which makes every token a row; leave them out")


def _load_side(model: Model, name: str, dtype: str) -> _Side:
    if name == PRETRAINED:
        return _Side(name, model, {})
    if is_adapter(name):
        own, update, _ = load_adapted(model, name)
        return _Side(name, own, update)
    return _Side(name, load_model(name, dtype, model.mesh), {})
