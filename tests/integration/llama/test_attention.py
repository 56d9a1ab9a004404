"""Every body of attention that can run here, against plain float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mossa_jax.devices.mesh import single_device
from mossa_jax.errors import Refusal
from mossa_jax.llama.attention import DecodingQuery, Segments, attention, choose_body
from mossa_jax.llama.blockwise import Spans, blockwise
from mossa_jax.llama.cudnn import cudnn
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.splash import splash
from tests.integration.llama.test_families import rows_of
from tests.integration.llama.test_parity import every_state
from tests.support.tiny_llama import distance, random_prompts, torch_states, write_family


def inputs(length, heads=4, kv_heads=2, width=16, rows=2, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(rows, length, heads, width))
    k, v = rng.normal(size=(2, rows, length, kv_heads, width))
    segments = np.sort(rng.integers(1, 5, (rows, length)), axis=1)
    segments[0, length - length // 5 :] = 0
    return q, k, v, segments


def plain(q, k, v, segments, window, cap=0):
    """Computes attention query by query and key by key."""
    out = np.zeros_like(q)
    for row, at, head in np.ndindex(q.shape[:3]):
        group = head * k.shape[2] // q.shape[2]
        seen = [
            key for key in range(at + 1)
            if segments[row, key] == segments[row, at] and (not window or at - key < window)
        ]  # fmt: skip
        scores = k[row, seen, group] @ q[row, at, head] / np.sqrt(q.shape[-1])
        scores = cap * np.tanh(scores / cap) if cap else scores
        weights = np.exp(scores - scores.max())
        out[row, at, head] = weights @ v[row, seen, group] / weights.sum()
    return out


@pytest.mark.parametrize("window", [0, 9, 300])
@pytest.mark.parametrize("length", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_the_xla_body_equals_numpy(length, window):
    q, k, v, segments = inputs(length)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    actual = attention(*arrays, Segments(jnp.asarray(segments)), window)
    assert distance(actual, plain(q, k, v, segments, window)) < 1e-6


@pytest.mark.parametrize("length", [40, 600])
def test_shared_keys_are_seen_by_every_sequence_and_not_by_padding(length):
    prefix = 11
    q, k, v, segments = inputs(length)
    segments[:, :prefix] = -1
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    actual = np.asarray(attention(*arrays, Segments(jnp.asarray(segments), prefix_columns=prefix)))
    for row in range(len(q)):
        for number in np.unique(segments[row]):
            own = np.flatnonzero(segments[row] == number)
            columns = own if number < 1 else [*range(prefix), *own]  # each sequence alone, the shared keys before it
            alone = [x[row : row + 1, columns] for x in (q, k, v)]
            expected = plain(*alone, np.ones((1, len(columns))), 0)[0, -len(own) :]
            assert distance(actual[row, own], expected) < 1e-6


@pytest.mark.parametrize("window", [0, 9])
def test_decoding_sees_what_a_whole_row_sees(window):
    q, k, v, _ = inputs(40, rows=1)
    expected = plain(q, k, v, np.ones((1, 40)), window)[:, -1:]
    order = np.random.default_rng(1).permutation(40)  # slots of a cache are in no order; two are empty
    arrays = [jnp.asarray(np.pad(x[:, order], ((0, 0), (0, 2), (0, 0), (0, 0))), jnp.float32) for x in (k, v)]
    keys = jnp.asarray([[*order, -1, -1]])
    actual = attention(jnp.asarray(q[:, -1:], jnp.float32), *arrays, DecodingQuery(keys, jnp.asarray([[39]])), window)
    assert distance(actual, expected) < 1e-6


@pytest.mark.parametrize("window", [0, 9])
def test_capped_scores_equal_numpy_in_rows_and_in_decoding(window):
    q, k, v, segments = inputs(40)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    expected = plain(q, k, v, segments, window, cap=0.7)
    actual = attention(*arrays, Segments(jnp.asarray(segments)), window, cap=0.7)
    assert distance(actual, expected) < 1e-6 < 0.01 < distance(plain(q, k, v, segments, window), expected)
    query = DecodingQuery(jnp.asarray([[*range(40)]]), jnp.asarray([[39]]))
    last = attention(arrays[0][:1, -1:], arrays[1][:1], arrays[2][:1], query, window, 0.7)
    assert distance(last, plain(q[:1], k[:1], v[:1], np.ones((1, 40)), window, cap=0.7)[:, -1:]) < 1e-6


def with_prefix(length, prefix, heads, own_queries, seed=0):
    """Rows whose first columns are shared keys; with `own_queries` these columns have no queries."""
    q, k, v, segments = inputs(length, *heads, seed=seed)
    segments[:, :prefix] = -1
    if own_queries:
        segments[1, prefix - 3 : prefix] = 0  # columns that only fill up the prefix
    return [jnp.asarray(x, jnp.float32) for x in (q[:, prefix * own_queries :], k, v)] + [jnp.asarray(segments)]


def agree(body, expected_body, arrays, segments, bound=(1e-6, 1e-5)):
    """Whether outputs and gradients of two bodies agree, on all queries but padding."""
    queries = arrays[0].shape[-3]
    counts = np.asarray(segments)[..., -queries:, None, None] != 0
    weights = jnp.asarray(np.random.default_rng(2).normal(size=arrays[0].shape) * counts, jnp.float32)

    def outputs(body):
        run = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(weights * body(*x, segments)), argnums=(0, 1, 2)))
        return jax.jit(body)(*arrays, segments) * counts, *run(*arrays)[1]

    actual, expected = outputs(body), outputs(expected_body)
    assert distance(actual[0], expected[0]) < bound[0]
    for one, other in zip(actual[1:], expected[1:], strict=True):
        assert distance(one, other) < bound[1]


def xla(prefix, window, cap=0.0):
    return lambda q, k, v, segments: attention(q, k, v, Segments(segments, prefix_columns=prefix), window, cap)


@pytest.mark.parametrize(
    ("length", "prefix", "own_queries", "window"),
    [
        (100, 0, False, 9),
        (100, 32, True, 0),
        pytest.param(100, 0, False, 0, marks=pytest.mark.slow),
        pytest.param(150, 20, False, 0, marks=pytest.mark.slow),
        pytest.param(40, 0, False, 300, marks=pytest.mark.slow),
    ],
)
def test_the_loop_over_blocks_and_its_gradients_equal_the_rows_written_out(length, prefix, own_queries, window):
    *arrays, segments = with_prefix(length, prefix, (4, 2), own_queries)
    spans = Spans(32, window or length, prefix)
    agree(lambda q, k, v, ids: blockwise(q, k, v, ids, spans), xla(prefix, window), arrays, segments)


def test_gradients_of_capped_scores_are_those_of_plain_differentiation():
    """The rows written out are differentiated by JAX, the loop over blocks by its own rule."""
    *arrays, segments = with_prefix(100, 0, (4, 2), False)
    agree(lambda q, k, v, ids: blockwise(q, k, v, ids, Spans(32, 100, 0, 0.7)), xla(0, 0, 0.7), arrays, segments)


def test_on_an_accelerator_the_xla_body_is_one_loop_whatever_the_length(monkeypatch):
    """Blocks that are written out, as on a CPU, take minutes to compile there."""

    class Device:
        platform = "gpu"

    class OneGpu:
        shape = property(lambda self: {"tensor": 1, "fsdp": 1})
        devices = np.asarray([Device()])

    def products(length):
        q, k, v, segments = inputs(length)
        run = lambda *x: attention(*x, Segments(jnp.asarray(segments), OneGpu()))  # noqa: E731
        return str(jax.make_jaxpr(run)(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))).count("dot_general")

    assert products(256) == products(1024) == 2


@pytest.mark.parametrize(
    ("masks", "prefix", "own_queries", "window", "heads"),
    [
        ("common", 32, True, 0, (4, 2)),
        ("own", 20, False, 0, (4, 2)),
        *(
            pytest.param(masks, *rest, marks=pytest.mark.slow)
            for masks in ("common", "own")
            for rest in [(0, False, 0, (4, 2)), (0, False, 9, (4, 4)), (20, False, 0, (4, 1)), (32, True, 0, (4, 4))]
        ),
    ],
)
def test_stacked_models_attend_through_cudnns_door(masks, prefix, own_queries, window, heads, mesh=None):
    """The call that cuDNN gets, computed by XLA: outputs and gradients, with masks in common and of their own."""
    *arrays, ids = with_prefix(100, prefix, heads, own_queries)
    stacked = [jnp.stack([x, -x[::-1], 2 * x, x + 1]) for x in arrays]
    segments = ids if masks == "common" else jnp.stack([ids, ids[::-1], ids, ids[::-1]])
    axes = (0, 0, 0, None if masks == "common" else 0)
    mesh = mesh or single_device()

    def ours(*x):
        call = lambda q, k, v, ids: cudnn(q, k, v, ids, mesh, window, implementation="xla")  # noqa: E731
        return jax.vmap(call, in_axes=axes, spmd_axis_name="adapter")(*x)

    agree(ours, jax.vmap(xla(prefix, window), in_axes=axes), stacked, segments)


@pytest.mark.parametrize(
    "common", [("k", "v"), *(pytest.param(names, marks=pytest.mark.slow) for names in ("q", "qkv"))]
)
def test_cudnns_door_takes_arrays_that_all_models_share(common):
    *arrays, ids = with_prefix(100, 0, (4, 2), False)
    stacked = [x if name in common else jnp.stack([x, -x]) for name, x in zip("qkv", arrays, strict=True)]
    axes = [None if name in common else 0 for name in "qkv"]
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, *arrays[0].shape)), jnp.float32)

    def outputs(body):
        run = jax.vmap(lambda q, k, v: body(q, k, v, ids), in_axes=axes, axis_size=2)
        gradients = jax.grad(lambda *x: jnp.sum(weights * run(*x)), argnums=(0, 1, 2))
        return jax.jit(lambda *x: (run(*x), *gradients(*x)))(*stacked)

    actual = outputs(lambda *x: cudnn(*x, single_device(), 0, implementation="xla"))
    for one, other in zip(actual, outputs(xla(0, 0)), strict=True):
        assert distance(one, other) < 1e-5


@pytest.mark.parametrize(
    ("length", "prefix", "own_queries", "window", "heads"),
    [
        pytest.param(100, 20, False, 0, (4, 2), marks=pytest.mark.slow),
        pytest.param(200, 0, False, 0, (4, 2), marks=pytest.mark.slow),
        pytest.param(256, 0, False, 40, (4, 4), marks=pytest.mark.slow),
        pytest.param(100, 0, False, 9, (4, 1), marks=pytest.mark.slow),
        pytest.param(200, 64, True, 0, (4, 2), marks=pytest.mark.slow),
        pytest.param(150, 64, True, 0, (4, 1), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("cap", [0.0, 0.7])
def test_splash_and_its_gradients_equal_the_xla_body(length, prefix, own_queries, window, heads, cap):
    """Interprets the kernel's body on this machine, under the `vmap` over models in which it always runs."""
    *arrays, ids = with_prefix(length, prefix, heads, own_queries)
    stacked = [jnp.stack([x, -x[::-1]]) for x in arrays]
    mesh, spans = single_device(), Spans(128, window or length, prefix, cap)

    def ours(q, k, v, ids):
        kernel = lambda q, k, v: splash(q, k, v, ids, mesh, spans, interpret=True)  # noqa: E731
        return jax.vmap(kernel, spmd_axis_name="adapter")(q, k, v)

    agree(ours, jax.vmap(xla(prefix, window, cap), in_axes=(0, 0, 0, None)), stacked, ids)


def test_cudnn_is_given_the_mask_of_the_packed_row(monkeypatch):
    q, k, v, segments = inputs(40)
    monkeypatch.setenv("MOSSA_ATTENTION", "cudnn")
    asked = []

    def library(*arrays, implementation, **kw):
        asked.append(implementation)
        return jax_attention(*arrays, implementation="xla", **kw)

    jax_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    actual = attention(*arrays, Segments(jnp.asarray(segments)), 9)
    assert asked == ["cudnn"] and distance(actual, plain(q, k, v, segments, 9)) < 1e-6


def test_bodies_are_chosen_by_platform_and_precision(monkeypatch):
    class Device:
        def __init__(self, platform):
            self.platform = platform

    def mesh(platform):
        devices = np.asarray([[[Device(platform)]]], object)
        return type("Mesh", (), {"devices": devices})()

    narrow, wide = jnp.dtype("bfloat16"), jnp.dtype("float32")
    assert [choose_body(mesh(p), narrow, 128) for p in ("tpu", "gpu", "cpu")] == ["splash", "cudnn", "xla"]
    assert [choose_body(mesh(p), wide, 128) for p in ("tpu", "gpu", "cpu")] == ["xla"] * 3
    assert [choose_body(mesh("gpu"), narrow, width) for width in (8, 12, 256)] == ["cudnn", "xla", "xla"]
    # cuDNN cannot cap scores, splash can.
    assert [choose_body(mesh(p), narrow, 128, 50.0) for p in ("tpu", "gpu", "cpu")] == ["splash", "xla", "xla"]
    assert choose_body(None, narrow, 128) == "xla"
    monkeypatch.setenv("MOSSA_ATTENTION", "xla")
    assert choose_body(mesh("tpu"), narrow, 128) == "xla"
    monkeypatch.setenv("MOSSA_ATTENTION", "cudnn")
    with pytest.raises(Refusal, match="cudnn cannot cap"):
        choose_body(mesh("gpu"), narrow, 128, 50.0)
    monkeypatch.setenv("MOSSA_ATTENTION", "flash")
    with pytest.raises(Refusal, match="flash"):
        choose_body(mesh("tpu"), narrow, 128)


@pytest.mark.parametrize("name", ["llama3_tied", "qwen3_biases"])
def test_float64_agrees_with_torch_in_double(name, tmp_path):
    """With 64 bits, no intermediate value is float32: norms, softmax, rotation, head."""
    tiny = write_family(tmp_path / "model", name)
    prompts = random_prompts(4)
    with jax.enable_x64(True):
        model = load_model(str(tiny.folder), dtype="float64")
        rows, places = rows_of(prompts, packed=False)
        states = every_state(model.architecture, model.state, *rows)
        assert {state.dtype for state in states.values()} == {np.dtype("float64")}
        states = {name: np.asarray(state) for name, state in states.items()}
    for (row, start), ids, expected in zip(
        places, prompts, torch_states(tiny.torch_model.double(), prompts), strict=True
    ):
        for layer, state in states.items():
            # transformers computes rotary tables and norms in float32 whatever the model's type.
            assert distance(state[row, start : start + len(ids)], expected[layer]) < 1e-6, layer


def test_float64_needs_64_bits(tiny):
    with pytest.raises(Refusal, match="JAX_ENABLE_X64"):
        load_model(str(tiny.folder), dtype="float64")
    with pytest.raises(Refusal, match="float16"):
        load_model(str(tiny.folder), dtype="float16")


@pytest.mark.parametrize("rest", [{}, {"window": 9}, {"prefix": 37}, {"prefix": 37, "max_own": 0}, {"before": 37}])
def test_attention_to_near_keys_equals_attention_to_all_keys_with_gradients(rest):
    """Sequences of at most 50 in rows of 300, against torch in float64 with the whole mask."""
    torch = pytest.importorskip("torch")
    prefix, window, before = (rest.get(name, 0) for name in ("prefix", "window", "before"))
    rng, length, max_own = np.random.default_rng(3), 300, 50
    segments = np.zeros((2, length), np.int32)
    for row in segments:
        at, number = prefix, 0
        while (size := int(rng.integers(1, max_own + 1))) + at < length - 20:
            number += 1
            row[at : at + size], at = number, at + size
        row[:prefix] = -1
    keys = np.concatenate([np.full((2, before), -1, np.int32), segments], axis=1)
    q = rng.normal(size=(2, length, 4, 8))
    k, v = rng.normal(size=(2, 2, keys.shape[1], 2, 8))
    weights = rng.normal(size=q.shape) * (segments > 0)[..., None, None]
    visible = Segments(jnp.asarray(keys), prefix_columns=prefix or before, max_own=rest.get("max_own", max_own))

    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def ours(*arrays):
        out = attention(*arrays, visible, window)
        return jnp.sum(out * weights.astype(np.float32)), out

    (_, actual), gradients = ours(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    behind = np.arange(before, before + length)[:, None] - np.arange(keys.shape[1])[None, :]
    shared = (keys == -1)[:, None] & (segments > 0)[..., None]
    mask = (behind >= 0) & (shared | (segments[:, :, None] == keys[:, None]))
    mask &= behind < (window or len(behind) + before)
    theirs = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    wide = [part.transpose(1, 2).repeat_interleave(4 // part.shape[2], 1) for part in theirs]
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, torch.tensor(mask)[:, None]).transpose(1, 2)
    (expected * torch.tensor(weights)).sum().backward()
    inside = segments > 0
    assert distance(np.asarray(actual)[inside], expected.detach().numpy()[inside]) < 1e-6
    for one, other in zip(gradients, theirs, strict=True):
        assert distance(np.asarray(one), other.grad.numpy()) < 1e-6
