"""Pre-training of the miniature base model: all parameters, next token, from scratch.

Only the embedded suite needs it. The model is small enough for one device, so its weights do not depend on how many
devices a machine has. The result is cached as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from etils import epath
from flax import nnx

from mossa_jax.config import Pretraining
from mossa_jax.errors import DISK, NOT_FINITE, STOPPED, Refusal
from mossa_jax.files.cache import cache_root
from mossa_jax.files.names import digest
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.files.write import new_folder
from mossa_jax.llama.architecture import Architecture, to_config
from mossa_jax.llama.files.about import check_files, is_checkable, read_about, write_about
from mossa_jax.llama.files.weights import save_weights
from mossa_jax.llama.model import initial_state, merge
from mossa_jax.llama.rope import Rope
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.processes import agreement
from mossa_jax.processes.stop import Stop
from mossa_jax.tokens.batches import batch_index
from mossa_jax.tokens.rows import pack_text
from mossa_jax.tokens.tokenizer import Tokenizer, load_tokenizer
from mossa_jax.tuning.batch import Batch
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.curves import BASE_KIND, LossSinceLine, mean_loss
from mossa_jax.tuning.loop import train
from mossa_jax.tuning.loss import answer_loss
from mossa_jax.tuning.windows import Window, add_loss, ends_window

# Gradient clip by global norm, Adam's second decay, and the share of the peak learning rate at the last step.
_CLIP, _ADAM_B2, _FINAL_RATE = 1.0, 0.98, 0.05


_CHECKPOINTS = "checkpoints/pretraining"

Metrics = dict[str, Any]
"""Metrics of a step, each []: `loss` (nats per token), and `window`."""


class PretrainingState(NamedTuple):
    """Everything that a step changes. The names and their order are part of the checkpoint format."""

    moments: optax.OptState
    parameters: nnx.State
    window: Window


def miniature_base(config: Pretraining, seed: int, run_folder: RunFolder, stop: Stop) -> epath.Path:
    """Returns the folder of the miniature base model; trains the model when it is not in the cache.

    All processes call it; the writer trains, on one device, and the others wait.

    Args:
      config: size of the model and of its training.
      seed: of the weights and of the order of rows.
      run_folder: for checkpoints and metrics.jsonl.
      stop: asked after every step.

    Raises:
      Refusal: 5 for a loss that is not finite; 6 where this host does not see the folder; 75 on a request to stop.
    """
    from mossa_jax.tasks.miniature import TOKENIZER, pretraining_text

    documents = pretraining_text(documents=config.documents)
    text = hashlib.sha256("\n".join(documents).encode()).hexdigest()
    vocabulary = hashlib.sha256((TOKENIZER / "tokenizer.json").read_bytes()).hexdigest()
    # Everything that the weights follow from; another text or tokenizer is another folder.
    key = digest([asdict(config), seed, text, vocabulary, _CLIP, _ADAM_B2, _FINAL_RATE])
    folder = epath.Path(cache_root() / f"miniature-{key}")
    if run_folder.writer and not _is_intact(folder):
        try:
            _pretrain(folder, documents, config, seed, run_folder, stop)
        except Refusal as refusal:
            if refusal.code != STOPPED:  # on a stop, all processes leave together below
                raise
    if run_folder.writer and folder.exists():
        (run_folder / _CHECKPOINTS).rmtree(missing_ok=True)
    # Processes that do not train wait here; the writer comes here after a stop, too.
    agreement.wait_for_all("pre-training")
    stop.leave_if_asked()
    if not folder.exists():
        raise Refusal(
            DISK,
            f"{folder}: the miniature base is missing on this host; set MOSSA_CACHE to a folder that all hosts share",
        )
    return folder


def _is_intact(folder: epath.Path) -> bool:
    """Returns whether the cache holds the model as it was written; damage is said, and the model is made again."""
    if not folder.exists():
        return False
    try:
        about = read_about(folder)
        check_files(folder, about)
    except Refusal as refusal:
        log.info("pretraining: the miniature base model is made again (%s)", refusal)
        return False
    if not is_checkable(about):
        log.info("pretraining: the miniature base model in %s has no digests and is made again", folder)
    return is_checkable(about)


def miniature_architecture(config: Pretraining) -> Architecture:
    """Returns the architecture of the miniature base model, which needs no training."""
    # A plain Llama with one key/value head per query head, and the head tied to the embedding, which is a large
    # part of so small a model.
    return Architecture(
        vocab=len(_tokenizer().library),
        hidden=config.hidden,
        feed_forward=config.feed_forward,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=config.hidden // config.heads,
        norm_eps=1e-5,
        rope=Rope(10000.0),
        positions=512,
        tied_head=True,
        bos=1,
        eos=(2,),
    )


def _tokenizer() -> Tokenizer:
    from mossa_jax.tasks.miniature import TOKENIZER

    return load_tokenizer(TOKENIZER, "none", bos=1, eos=(2,))


def _pretrain(
    folder: epath.Path, documents: Sequence[str], config: Pretraining, seed: int, run_folder: RunFolder, stop: Stop
) -> None:
    """Trains the miniature base on one device and writes its Hugging Face folder."""
    from mossa_jax.tasks.miniature import TOKENIZER

    log.info(
        "pretraining: the miniature base model, %s steps on the suite's own text; kept in %s for later runs",
        f"{config.steps:,}", folder,
    )  # fmt: skip
    tokenizer = _tokenizer()
    ids = [[*prompt, tokenizer.eos] for prompt in tokenizer.prompts(documents)]
    rows = pack_text(ids, config.row_length)
    arch = miniature_architecture(config)
    parameters = initial_state(arch, seed)
    optimizer = _muon(config, parameters)
    window = Window.of(lambda dtype: jnp.zeros((), dtype))
    log_every = max(config.steps // 10, 1)
    update = _make_update(arch, optimizer, log_every)
    since_line = LossSinceLine()
    recorded = 0

    def step(state: PretrainingState, number: int) -> tuple[PretrainingState, Metrics]:
        with goodput.lost("input"):
            # A pure function of seed and step, so that a resumed run sees the same rows: fields [B, S] and [B, M].
            taken = rows.take(batch_index(len(rows), config.batch_rows, (seed, 3), number))
            batch = {field.name: jnp.asarray(getattr(taken, field.name)) for field in fields(taken)}
        return update(state, batch, number)

    def report(done: int, metrics: Metrics) -> None:
        nonlocal recorded
        value, window = float(metrics["loss"]), jax.tree.map(np.asarray, metrics["window"])
        if not np.isfinite(value):
            raise Refusal(NOT_FINITE, f"pre-training loss is {value} at step {done}; lower pretraining.learning_rate")
        if ends_window(done, log_every, config.steps) and done > recorded:
            recorded = done
            since_line.add(window)
            # A task may have any name, so that the kind says that this is no specialist.
            run_folder.append_metrics(
                {"model": "pretraining", "kind": BASE_KIND, "step": done, "loss": round(mean_loss(window), 6)}
            )

    state = train(
        "pre-training",
        config.steps,
        PretrainingState(jax.jit(optimizer.init)(parameters), parameters, window),
        step,
        report,
        since_line.report,
        checkpoints=Checkpoints(
            run_folder / _CHECKPOINTS, alone=True, config=folder.name, before_sealing=run_folder.flush
        ),
        checkpoint_every=max(config.steps // 5, 1),
        log_every=log_every,
        stop=stop,
        alone=True,
    )
    with goodput.lost("export"):
        with new_folder(folder) as new:
            save_weights(new, arch, state.parameters, to_config(arch), epath.Path(TOKENIZER))
            write_about(new, {"pretraining": asdict(config), "seed": seed})


def _make_update(
    arch: Architecture, optimizer: optax.GradientTransformation, log_every: int
) -> Callable[[PretrainingState, Batch, int], tuple[PretrainingState, Metrics]]:
    """Makes the jitted `(state, batch, number) -> (state, metrics)`; the batch's fields are [B, ...]."""

    @jax.jit
    def update(state: PretrainingState, batch: Batch, number: jax.Array) -> tuple[PretrainingState, Metrics]:
        def loss(parameters: nnx.State) -> tuple[jax.Array, jax.Array]:
            # Every token after a document's first is a label (`pack_text`), so this is the next-token
            # loss. float32 throughout.
            return answer_loss(merge(arch, parameters), arch, {}, batch, remat=False, frozen=False)

        (nats, count), gradients = jax.value_and_grad(loss, has_aux=True)(state.parameters)
        # The gradient of the mean over the batch's tokens, not of the sum.
        gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
        updates, moments = optimizer.update(gradients, state.moments, state.parameters)
        parameters, mean = optax.apply_updates(state.parameters, updates), nats / count
        window = add_loss(state.window, number, mean, jnp.isfinite(mean), log_every)
        return PretrainingState(moments, parameters, window), {"loss": mean, "window": window}

    return update


def _muon(config: Pretraining, parameters: nnx.State) -> optax.GradientTransformation:
    """Returns Muon for the blocks' matrices, Adam for embedding and norms; linear warm-up, then linear decay.

    On this model Muon reaches in 400 thousand tokens what AdamW did not in a million (docs/measurements.md).

    References:
      Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    # Matrices of the blocks are stacked over layers, axis 0: [L, output, input].
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
    # Three axes mean a stacked matrix. The embedding [V, D] and norms ([L, D] and [D]) get None, and with it Adam.
    matrices = jax.tree.map(lambda leaf: matrix if leaf.ndim == 3 else None, parameters)
    rise = max(int(config.warmup * config.steps), 1)

    def schedule(peak: float) -> optax.Schedule:
        fall = optax.linear_schedule(peak, _FINAL_RATE * peak, max(config.steps - rise, 1))
        # Peaks differ between Muon and Adam; the shape of the schedule is the same.
        return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), fall], [rise])

    return optax.chain(
        # Over all gradients together, before they part into those of Muon and those of Adam.
        optax.clip_by_global_norm(_CLIP),
        optax.contrib.muon(
            schedule(config.learning_rate),
            muon_weight_dimension_numbers=matrices,
            adam_learning_rate=schedule(config.adam_learning_rate),
            adam_b2=_ADAM_B2,
        ),
    )
