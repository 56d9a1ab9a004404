"""The models of a run folder, and their states over prompts that are cut and templated as in the run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from mossa_jax.config import MINIATURE, PRETRAINED, TUNED, Config
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, Refusal
from mossa_jax.files.names import slug
from mossa_jax.files.paths import on_disk
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import is_whole
from mossa_jax.llama.adapters import HostAdapters, stack, zero_adapter
from mossa_jax.llama.files.base import base_tokenizer
from mossa_jax.llama.files.exported import exported_about, load_exported, load_exported_model
from mossa_jax.llama.files.load import Model, load_model
from mossa_jax.llama.fingerprint import check_weights, weights_digest
from mossa_jax.processes.stop import Stop
from mossa_jax.run.fingerprints import FINGERPRINTS
from mossa_jax.states import KeptStates, PassConfig, TokenStates, keep_states, token_states
from mossa_jax.tasks import Example, Task, load_suite
from mossa_jax.tasks.order import draw_seed, take_rows
from mossa_jax.tokens.encoded import encode_rows
from mossa_jax.tokens.packing import Packing
from mossa_jax.tokens.test_prompts import TestPrompts, distinct_prompts
from mossa_jax.tokens.tokenizer import Tokenizer, encode_prompts
from mossa_jax.tuning.pretrain import miniature_base

POOLS = ("last", "mean", "tokens")


class RunModels:
    """The models that a run tuned, and its base.

    Attributes:
      folder: the run folder.
      config: of the run.
      data: its record of rows (data.json).
    """

    def __init__(self, folder: epath.Path, config: Config, data: dict[str, Any]):
        """Names the folder; nothing is loaded before it is asked for."""
        self.folder, self.config, self.data = folder, config, data

    @cached_property
    def names(self) -> list[str]:
        """Names of the models that are there, the base first."""
        tasks = list(self.data["tasks"])
        candidates = [TUNED, *(f"{TUNED}.seed{number}" for number in range(1, self.config.tuning.seeds))]
        for task in tasks:
            seeds = range(1, self.config.tuning.control_seeds)
            candidates += [task, *(f"{task}.seed{number}" for number in seeds), f"{task}.twin"]
        return [PRETRAINED, *(name for name in candidates if self._tuned_folder(name) is not None)]

    def _tuned_folder(self, name: str) -> epath.Path | None:
        """Returns the folder of a tuned model, an adapter or a whole one; None if it is not there."""
        folders = [self.folder / kind / slug(name) for kind in ("adapters", "models")]
        return next((folder for folder in folders if is_whole(folder)), None)

    @cached_property
    def base(self) -> Model:
        """The base model, on one device."""
        config = self.config
        if config.base == MINIATURE:
            folder = miniature_base(config.pretraining, config.seed, RunFolder(self.folder, writer=False), Stop())
            base = load_model(str(folder), config.dtype)
        else:
            base = load_model(config.base, config.dtype, revision=config.revision)
        prints = self.data.get(FINGERPRINTS, {})
        check_weights(weights_digest(base.state), prints, f"the models of {self.folder} were", base.name)
        return base

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer, with the run's template."""
        return base_tokenizer(self.config)

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {task.name: task for task in load_suite(self.config.tasks).tasks}

    def _task(self, name: str) -> Task:
        if name not in self.data["tasks"]:
            close = difflib.get_close_matches(name, self.data["tasks"], 3) or list(self.data["tasks"])[:8]
            raise Refusal(BAD_CONFIG, f"{self.folder} has no task {name!r}; there is {', '.join(close)}")
        if name not in self._tasks:
            raise Refusal(BAD_INPUT, f"task {name!r} of {self.folder} is no longer in its source; restore its rows")
        return self._tasks[name]

    def test_prompts(self, name: str) -> TestPrompts:
        """Returns a task's distinct test prompts, as the run compares them.

        Raises:
          Refusal: 2 for a task that is not the run's; 3 if the rows are no longer those that the run saw.
        """
        encoded = encode_rows(self._task(name), "test", self.tokenizer, self.config)
        if encoded.fingerprint != self.data["tasks"][name]["test"]["fingerprint"]:
            raise Refusal(
                BAD_INPUT,
                f"the test rows of task {name!r} have changed since {self.folder} read them; restore them, or give "
                "`prompts`",
            )
        return distinct_prompts(encoded)

    def examples(self, name: str) -> list[Example]:
        """Returns the rows of `test_prompts`, in its order."""
        rows, config, task = self.test_prompts(name).rows, self.config, self._task(name)
        taken = list(take_rows(task, "test", config.tasks.max_test, draw_seed(config, task, "test")))
        return [taken[row] for row in rows]

    def states(
        self, name: str | None, prompts: Sequence[str] | None, task: str | None, pool: str | None
    ) -> dict[str, Float[np.ndarray, "n D"]] | TokenStates:
        """Computes the states of a model; `Run.states` says of what."""
        config = self.config
        name = PRETRAINED if name is None else name
        if name not in self.names:
            close = difflib.get_close_matches(name, self.names, 3) or self.names[:8]
            raise Refusal(BAD_CONFIG, f"{self.folder} has no model {name!r}; there is {', '.join(close)}")
        pool = pool or ("tokens" if config.compare.pool == "all" else config.compare.pool)
        if pool not in POOLS:
            raise Refusal(BAD_CONFIG, f"pool {pool!r} is unknown; give one of {', '.join(POOLS)}")
        ids = self._ids(name, prompts, task)
        if pool == "tokens":
            model, adapters = self._loaded([name])
            packing = Packing.of(config.tokens)
            return token_states(model, adapters, ids, PassConfig("all", config.compare.batch_rows, packing))
        kept = self.keep([name], ids, pool)
        # [1, L + 2, slots, D] on the devices -> [L + 2, n, D] on the host.
        return dict(zip(kept.names, np.asarray(kept.states)[0, :, : len(ids)], strict=True))

    def keep(
        self, names: Sequence[str], ids: Sequence, pool: str, lists: Sequence[Sequence] | None = None
    ) -> KeptStates:
        """Keeps the pooled states of models over the same prompts, as the run's comparison does.

        Args:
          names: of models; one alone, if it is a whole model.
          ids: token ids of the prompts.
          pool: "last" or "mean".
          lists: of prompts that are to share compiled programs; by default these alone.
        """
        model, adapters = self._loaded(names)
        config = PassConfig(pool, self.config.compare.batch_rows, Packing.of(self.config.tokens))
        shapes = config.shapes([config.pack(model.architecture, each).sizes for each in lists or [ids]], model.mesh)
        return keep_states(model, adapters, ids, config, shapes)

    def _ids(self, model: str, prompts: Sequence[str] | None, task: str | None) -> list:
        """Returns the token ids of texts, or of a task's prompts, as the run would read them."""
        if prompts is not None and task is not None:
            raise Refusal(BAD_CONFIG, "both `prompts` and `task` are given; give one of them")
        if prompts is None:
            own = re.sub(r"\.(seed\d+|twin)$", "", model)
            task = task or (own if own in self.data["tasks"] else None)
            if task is None:
                raise Refusal(BAD_CONFIG, f"states of {model!r}: give `prompts`, or `task=` one of the run's tasks")
            return self.test_prompts(task).ids
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise Refusal(BAD_INPUT, "prompts are not a list of texts; give a list, one text per prompt")
        if not len(prompts):
            raise Refusal(BAD_INPUT, "there are no prompts; give at least one text")
        return encode_prompts(self.tokenizer, prompts, self.config.tokens.max_tokens, self.config.tokens.truncation)[0]

    def _loaded(self, names: Sequence[str]) -> tuple[Model, HostAdapters]:
        """Returns the model on the devices and adapters, [m, ...] on the host; a zero adapter is the model itself."""
        folders = {name: folder for name in names if (folder := self._tuned_folder(name)) is not None}
        for name, folder in folders.items():
            about = exported_about(folder, name)
            self.tokenizer.check_record(about.get("template"), f"model {name!r} of {self.folder}")
        whole = [name for name, folder in folders.items() if folder.parent.name == "models"]
        if whole and len(names) > 1:
            raise Refusal(BAD_INPUT, f"{whole[0]!r} of {self.folder} is a whole model; only adapters run together")
        model = self._whole_model(folders[whole[0]], whole[0]) if whole else self.base
        arch = model.architecture
        is_adapter = [name in folders and not whole for name in names]
        adapters = [
            load_exported(folders[name], arch, name) if own else {} for name, own in zip(names, is_adapter, strict=True)
        ]
        return model, stack(arch, adapters if any(adapters) else [zero_adapter(arch) for _ in adapters])

    def _whole_model(self, folder: epath.Path, name: str) -> Model:
        with on_disk(folder) as local:
            return load_exported_model(local, folder, self.config.dtype, None, name)
