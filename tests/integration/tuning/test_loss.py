"""Loss and gradients of packed rows against a plain sum over examples in torch; and the memory they take."""

import dataclasses
import sys
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh, place
from mossa_jax.llama.adapters import AXES, initial_adapter, matrices, scales, stack, with_scales
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.llama.model import abstract_state, initial_state, merge
from mossa_jax.llama.placement import shardings
from mossa_jax.llama.rope import Rope
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.rows import pack_examples
from mossa_jax.tuning import loss as objective
from mossa_jax.tuning.loss import answer_loss
from tests.support.processes import together
from tests.support.tiny_llama import VOCAB, distance, write_adapter

ARCH = Architecture(
    vocab=VOCAB, hidden=32, feed_forward=48, layers=2, heads=4, kv_heads=4, head_dim=8, norm_eps=1e-5, rope=Rope(1e4),
    positions=512, tied_head=False, bos=1, eos=(2,),
)  # fmt: skip


def examples(count=8, seed=2, longest=5):
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(3, VOCAB, size).tolist()  # noqa: E731
    return [Encoded([1, *draw(rng.integers(2, 9))], [*draw(rng.integers(0, longest)), 2]) for _ in range(count)]


def torch_loss_and_gradients(reference, examples):
    """Returns (summed loss, answer tokens, (target, "a" or "b", layer) -> gradient as we store it) over examples."""
    torch = pytest.importorskip("torch")
    reference.zero_grad()
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_("lora_" in name)
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.prompt + example.answer])
        scores = reference(ids).logits[0, len(example.prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(example.answer), reduction="sum")
        loss.backward()
        total, count = total + loss.item(), count + len(example.answer)
    wanted = {}
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            layer = int(name.split("layers.")[1].split(".")[0])
            side = name.split("lora_")[1][0].lower()
            wanted[name.split(".")[-4], side, layer] = parameter.grad.numpy().T
    return total, count, wanted


def arrays(rows):
    return {field.name: jnp.asarray(getattr(rows, field.name)) for field in fields(rows)}


def all_rows(packed, width=None):
    return arrays(packed.take(np.arange(len(packed)), width))


def loss_and_gradients(arch, base, adapter, rows, remat=False, times=1.0):
    @jax.jit
    def both(parts, base):
        def loss(parts):
            nats, count = answer_loss(merge(arch, base), arch, with_scales(parts, scales(adapter)), rows, remat)
            return times * nats, count

        return jax.value_and_grad(loss, has_aux=True)(parts)

    return both(matrices(adapter), base)


# Head and loss in one chunk, and in chunks of two columns, the last of them padded.
@pytest.mark.parametrize(("remat", "chunk"), [(False, 1_024), (True, 1_024), (False, 6)])
def test_packed_loss_and_gradients_equal_torch_example_by_example(tiny, tiny_adapters, monkeypatch, remat, chunk):
    monkeypatch.setattr(objective, "HEAD_TOKENS", chunk)
    folder, reference = tiny_adapters[0]
    total, count, wanted = torch_loss_and_gradients(reference, examples())
    model = load_model(str(tiny.folder))
    arch = model.architecture
    (packed,) = pack_examples(in_memory(examples()), 32)
    assert len(packed) < 8
    rows = all_rows(packed, packed.width + 3)
    (loss, tokens), gradients = loss_and_gradients(arch, model.state, load_adapter(folder, arch), rows, remat)
    assert int(tokens) == count
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert len(wanted) == 2 * 7 * arch.layers
    for (target, side, layer), theirs in wanted.items():
        assert distance(gradients[target][side][layer], theirs) < 1e-5 * 5, (target, side, layer)


def test_a_tied_head_in_chunks_equals_torch(tiny_tied, tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "HEAD_TOKENS", 6)
    # Not all targets of one input are in the adapter; the products with `a` are joined for those that are.
    reference = write_adapter(tiny_tied.folder, tmp_path, seed=5, targets=("v_proj", "q_proj", "up_proj"))
    total, _, wanted = torch_loss_and_gradients(reference, examples())
    model = load_model(str(tiny_tied.folder))
    arch = model.architecture
    (packed,) = pack_examples(in_memory(examples()), 32)
    (loss, _), gradients = loss_and_gradients(
        arch, model.state, load_adapter(tmp_path, arch), all_rows(packed), times=-3.0
    )
    assert float(loss) == pytest.approx(-3 * total, rel=1e-5)
    assert len(wanted) == 2 * 3 * arch.layers
    for (target, side, layer), theirs in wanted.items():
        assert distance(gradients[target][side][layer], -3 * theirs) < 1e-5 * 5, (target, side, layer)


def random_adapter(seed, ranks):
    parts = {}
    for number, (target, rank) in enumerate(ranks.items()):
        parts |= initial_adapter(ARCH, (target,), rank, 4.0, 0, (seed, number))
        b = parts[target]["b"]
        b += 0.2 * np.random.default_rng((seed, number)).normal(size=b.shape).astype(np.float32)
    return parts


@pytest.mark.slow
def test_joined_products_of_different_ranks_equal_updates_inside_the_weights():
    """The reference has no adapter: b a is added to the weights in float64 and differentiated there."""
    targets = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    adapter = random_adapter(3, {target: 2 + number for number, target in enumerate(targets)})
    state = initial_state(ARCH, 1)
    rows = all_rows(pack_examples(in_memory(examples()), 32)[0])
    with jax.enable_x64(True):
        wide, parts = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree) for tree in (state, adapter))

        def loss(parts):
            state = jax.tree.map(lambda leaf: leaf, wide)
            for target, part in parts.items():
                of = "attention" if target[0] in "qkvo" else "feed_forward"
                update = jnp.einsum("lir,lro,l->loi", part["a"], part["b"], part["scale"])
                weight = state["blocks"][of][target]["weight"]
                state["blocks"][of][target]["weight"] = weight.replace(weight[...] + update)
            return answer_loss(merge(ARCH, state), ARCH, {}, rows, False)[0]

        wanted, theirs = jax.jit(jax.value_and_grad(loss))(parts)
    (loss, _), gradients = loss_and_gradients(ARCH, state, adapter, rows)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    for target, part in gradients.items():
        for side in part:
            assert distance(part[side], theirs[target][side]) < 2e-6, (target, side)


@pytest.mark.slow
def test_bfloat16_sums_in_float32_and_gives_the_gradient_of_float32_to_its_own_precision(monkeypatch):
    monkeypatch.setattr(objective, "HEAD_TOKENS", 16)
    rng = np.random.default_rng(0)
    narrow = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)  # noqa: E731
    states, head, labels = narrow(4, 40, 32), narrow(VOCAB, 32), jnp.asarray(rng.integers(0, VOCAB, (4, 40)))
    labels = jnp.where(jnp.arange(40) < jnp.array([[3], [40], [0], [17]]), labels, -1)
    columns = jnp.tile(jnp.arange(40), (4, 1))

    def both(dtype):
        state = jax.tree.map(lambda leaf: leaf.astype(dtype), initial_state(ARCH, 1))
        state["head"] = state["head"].replace(head.astype(dtype))
        model = merge(ARCH, state)
        loss = lambda x: objective.frozen_loss(model, ARCH, x, columns, labels, None)  # noqa: E731
        return jax.value_and_grad(loss)(states.astype(dtype))

    (wanted, theirs), (narrow_loss, gradient) = both(jnp.float32), both(jnp.bfloat16)
    assert narrow_loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    assert float(narrow_loss) == pytest.approx(
        float(wanted), rel=2e-3
    )  # about 60 terms: sums in bfloat16 would lose more
    assert distance(gradient, theirs) < 1e-2
    assert not np.asarray(gradient, np.float32)[labels < 0].any()


@pytest.mark.slow
def test_models_together_take_the_chunks_of_the_fullest_and_learn_what_each_learns_alone(monkeypatch):
    monkeypatch.setattr(objective, "HEAD_TOKENS", 8)
    state, taken, plain = initial_state(ARCH, 1), [], objective._chunk_loss

    def counting(chunk, *rest):
        jax.debug.callback(lambda chunk: taken.append(int(chunk)), chunk)
        return plain(chunk, *rest)

    monkeypatch.setattr(objective, "_chunk_loss", counting)
    adapters = [random_adapter(seed, {"q_proj": 2, "v_proj": 2}) for seed in (1, 2)]
    (few,) = pack_examples(in_memory(examples(4, 1, longest=1)), 24)
    (many,) = pack_examples(in_memory(examples(4, 2, longest=9)), 24)
    index = np.array([0, 1])
    batches = [arrays(packed.take(index, 40)) for packed in (few, many)]
    fullest = [int((batch["labels"] >= 0).sum(1).max()) for batch in batches]
    assert -(-fullest[0] // 4) < -(-fullest[1] // 4) < 10  # chunks of four columns, as there are two rows

    @jax.jit
    def together(parts, scale, rows):
        def one(parts, scale, rows):
            loss = lambda p: answer_loss(merge(ARCH, state), ARCH, with_scales(p, scale), rows, False)  # noqa: E731
            return jax.value_and_grad(loss, has_aux=True)(parts)

        return jax.vmap(one)(parts, scale, rows)

    stacked = stack(ARCH, adapters)
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    stacked_results = together(matrices(stacked), scales(stacked), rows)
    jax.effects_barrier()
    assert sorted(set(taken)) == list(range(-(-fullest[1] // 4)))
    for number, (adapter, batch) in enumerate(zip(adapters, batches, strict=True)):
        taken.clear()
        alone = loss_and_gradients(ARCH, state, adapter, batch)
        jax.effects_barrier()
        assert sorted(taken) == list(range(-(-fullest[number] // 4)))
        for one, other in zip(jax.tree.leaves(stacked_results), jax.tree.leaves(alone), strict=True):
            assert distance(one[number], other) < 1e-6


@pytest.mark.slow
def test_no_logits_are_kept_for_the_backward_pass():
    arch, length, adapter = dataclasses.replace(ARCH, vocab=8_000), 512, random_adapter(1, {"q_proj": 2})
    names = ("tokens", "segments", "positions", "predict", "labels")
    rows = {name: jax.ShapeDtypeStruct((8, length), jnp.int32) for name in names}

    def temporary(frozen):
        def gradients(parts, base, rows):
            loss = lambda p: answer_loss(  # noqa: E731
                merge(arch, base), arch, with_scales(p, scales(adapter)), rows, True, frozen=frozen
            )[0]
            return jax.grad(loss)(parts)

        compiled = jax.jit(gradients).lower(matrices(adapter), abstract_state(arch, jnp.float32), rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 8 * length * arch.vocab * 4
    assert temporary(True) < logits < temporary(False)


def test_a_trained_head_is_refused_as_frozen():
    state, rows = initial_state(ARCH, 1), all_rows(pack_examples(in_memory(examples()), 32)[0])

    def gradient(**options):
        loss = lambda base: answer_loss(merge(ARCH, base), ARCH, {}, rows, False, **options)[0]  # noqa: E731
        return jax.jit(jax.grad(loss))(state)

    with pytest.raises(ValueError, match="frozen=False"):
        gradient()
    gradients = gradient(frozen=False)
    assert np.any(np.asarray(gradients["head"][...])) and np.any(np.asarray(gradients["final_norm"]["weight"][...]))


MANY = [("untied", "2,2,2"), pytest.param("tied", "2,2,2 1,2,4 1,8,1", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "meshes"), MANY)
def test_on_eight_devices_as_on_one(root, head, meshes, tmp_path):
    program = f"""
from tests.integration.tuning.test_loss import spread
print("largest", spread({head!r}, {meshes!r}))
"""
    (out,) = together([[sys.executable, "-c", program]], root, 8, tmp_path)
    assert float(out.split()[-1]) < 5e-6


def spread(head: str, meshes: str) -> float:
    """Returns the largest relative difference of two models on meshes of eight devices from one device."""
    objective.HEAD_TOKENS = 16
    arch = dataclasses.replace(ARCH, tied_head=head == "tied")
    state = initial_state(arch, 1)
    adapters = stack(arch, [random_adapter(seed, {"k_proj": 2, "v_proj": 3, "up_proj": 2}) for seed in (1, 2)])
    (packed,) = pack_examples(in_memory(examples(40, longest=12)), 40)
    index = np.random.default_rng(0).integers(0, len(packed), (2, 8))
    rows = [packed.take(one, 30) for one in index]
    rows = {field.name: np.stack([getattr(one, field.name) for one in rows]) for field in fields(rows[0])}

    def results_on(mesh, **options):
        def one(base, parts, scale, rows):
            def loss(parts):
                return answer_loss(merge(arch, base), arch, with_scales(parts, scale), rows, True, mesh, **options)

            return jax.value_and_grad(loss, has_aux=True)(parts)

        put = lambda leaf, names: place(mesh, leaf, names)  # noqa: E731
        parts = {t: {name: put(leaf, AXES[name]) for name, leaf in part.items()} for t, part in adapters.items()}
        batch = {name: put(leaf, ("adapter", "rows", None)) for name, leaf in rows.items()}
        base = jax.device_put(state, shardings(arch, mesh))
        stacked = jax.vmap(one, in_axes=(None, 0, 0, 0), spmd_axis_name="adapter")
        return jax.tree.map(np.asarray, jax.jit(stacked)(base, matrices(parts), scales(parts), batch))

    wanted = results_on(make_mesh(Mesh(1, 1, 1), devices=jax.devices()[:1]), frozen=False)
    many = [results_on(make_mesh(Mesh(*sizes))) for sizes in (map(int, mesh.split(",")) for mesh in meshes.split())]
    pairs = [pair for one in many for pair in zip(jax.tree.leaves(one), jax.tree.leaves(wanted), strict=True)]
    return max(distance(*pair) for pair in pairs)
