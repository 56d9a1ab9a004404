"""Pre-training of the miniature base model: all parameters, next token, from scratch.

Only the embedded suite needs it. The model is so small that one device trains it, so that its weights do not depend
on how many devices a machine has; the result is cached as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from etils import epath

from mossa_jax.config import Pretraining
from mossa_jax.errors import DISK, NOT_FINITE, STOPPED, Refusal
from mossa_jax.files.cache import cache_root
from mossa_jax.files.names import digest
from mossa_jax.files.run_folder import RunFolder
from mossa_jax.llama.architecture import Architecture, to_config
from mossa_jax.llama.files.weights import save_weights
from mossa_jax.llama.model import initial_state, merge
from mossa_jax.llama.rope import Rope
from mossa_jax.log import log
from mossa_jax.monitoring import goodput
from mossa_jax.processes import agreement
from mossa_jax.processes.stop import Stop
from mossa_jax.tokens.batches import batch_index
from mossa_jax.tokens.rows import pack_text
from mossa_jax.tokens.tokenizer import load_tokenizer
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.loop import train
from mossa_jax.tuning.loss import answer_loss

_CLIP, _ADAM_B2, _FINAL_RATE = 1.0, 0.98, 0.05


def miniature_base(config: Pretraining, seed: int, run_folder: RunFolder, stop: Stop) -> epath.Path:
    """The folder of the miniature base model for this configuration; trains it when it is not in the cache."""
    from mossa_jax.tasks.miniature import TOKENIZER, pretraining_text

    documents = pretraining_text(documents=config.documents)
    text = hashlib.sha256("\n".join(documents).encode()).hexdigest()
    vocabulary = hashlib.sha256((TOKENIZER / "tokenizer.json").read_bytes()).hexdigest()
    key = digest([dataclasses.asdict(config), seed, text, vocabulary, _CLIP, _ADAM_B2, _FINAL_RATE])
    folder = epath.Path(cache_root() / f"miniature-{key}")
    if not folder.exists() and run_folder.writer:
        try:
            _pretrain(folder, documents, config, seed, run_folder, stop)
        except Refusal as refusal:
            if refusal.code != STOPPED:  # else all processes leave together, below
                raise
    agreement.wait_for_all("pre-training")
    stop.leave_if_asked()
    if not folder.exists():
        raise Refusal(DISK, f"{folder} is not there on this host; set MOSSA_CACHE to a folder that all hosts share")
    return folder


def _pretrain(folder, documents, config: Pretraining, seed: int, run_folder: RunFolder, stop: Stop) -> None:
    from mossa_jax.tasks.miniature import TOKENIZER

    log.info("pre-training the miniature base model (kept in %s)", folder)
    tokenizer = load_tokenizer(TOKENIZER, "none", bos=1, eos=(2,))
    ids = [[*prompt, tokenizer.eos] for prompt in tokenizer.prompts(documents)]
    rows = pack_text(ids, config.row_length)
    arch = Architecture(
        vocab=len(tokenizer.library),
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
    parameters = initial_state(arch, seed)
    optimizer = _muon(config, parameters)
    state = {"parameters": parameters, "moments": jax.jit(optimizer.init)(parameters)}

    @jax.jit
    def update(state, batch):
        def loss(parameters):
            return answer_loss(merge(arch, parameters), arch, {}, batch, remat=False, frozen=False)

        (summed, count), gradients = jax.value_and_grad(loss, has_aux=True)(state["parameters"])
        gradients = jax.tree.map(lambda leaf: leaf / count, gradients)
        updates, moments = optimizer.update(gradients, state["moments"], state["parameters"])
        return {"parameters": optax.apply_updates(state["parameters"], updates), "moments": moments}, summed / count

    def step(state, number):
        with goodput.lost("input"):
            batch = rows.take(batch_index(len(rows), config.batch_rows, (seed, 3), number))
            batch = {field.name: jnp.asarray(getattr(batch, field.name)) for field in fields(batch)}
        return update(state, batch)

    def report(done, loss):
        loss = float(loss)
        if not np.isfinite(loss):
            raise Refusal(NOT_FINITE, f"pre-training loss is {loss} at step {done}; lower pretraining.learning_rate")
        run_folder.append_metrics({"model": "pretraining", "step": done, "loss": round(loss, 6)})
        return f"loss {loss:.3f}"

    state = train(
        "pre-training",
        config.steps,
        state,
        step,
        report,
        checkpoints=Checkpoints(
            run_folder / "checkpoints/pretraining", alone=True, config=folder.name, before_sealing=run_folder.flush
        ),
        checkpoint_every=max(config.steps // 5, 1),
        log_every=max(config.steps // 10, 1),
        stop=stop,
        alone=True,
    )
    with goodput.lost("export"):
        save_weights(folder, arch, state["parameters"], to_config(arch), epath.Path(TOKENIZER))


def _muon(config: Pretraining, parameters) -> optax.GradientTransformation:
    """Muon for the blocks' matrices, Adam for embedding and norms; linear warm-up, then linear decay.

    On this model Muon reaches in 400 thousand tokens what AdamW did not in a million (BUILD_NOTES.md).
    """
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)  # axis 0 is the stack of layers
    matrices = jax.tree.map(lambda leaf: matrix if leaf.ndim == 3 else None, parameters)
    rise = max(int(config.warmup * config.steps), 1)

    def schedule(peak: float) -> optax.Schedule:
        fall = optax.linear_schedule(peak, _FINAL_RATE * peak, max(config.steps - rise, 1))
        return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), fall], [rise])

    return optax.chain(
        optax.clip_by_global_norm(_CLIP),
        optax.contrib.muon(
            schedule(config.learning_rate),
            muon_weight_dimension_numbers=matrices,
            adam_learning_rate=schedule(config.adam_learning_rate),
            adam_b2=_ADAM_B2,
        ),
    )
