"""Loss and gradients of packed rows against a plain sum over examples in torch."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_llama import VOCAB, distance

from mossa_jax.llama.adapters import join, scales, trainable
from mossa_jax.llama.load import load_model
from mossa_jax.llama.model import merge
from mossa_jax.llama.peft import load_adapter
from mossa_jax.tokens.encoded import Encoded, in_memory
from mossa_jax.tokens.packing import pack_examples
from mossa_jax.tuning.objective import answer_loss


def examples():
    rng = np.random.default_rng(2)
    draw = lambda size: rng.integers(3, VOCAB, size).tolist()  # noqa: E731
    return [Encoded([1, *draw(rng.integers(2, 9))], [*draw(rng.integers(0, 5)), 2]) for _ in range(8)]


@pytest.mark.parametrize("remat", [False, True])
def test_packed_loss_and_gradients_equal_torch_example_by_example(tiny, tiny_adapters, remat):
    torch = pytest.importorskip("torch")
    folder, reference = tiny_adapters[0]
    reference.zero_grad()
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_("lora_" in name)
    total, count = 0.0, 0
    for example in examples():
        ids = torch.tensor([example.prompt + example.answer])
        scores = reference(ids).logits[0, len(example.prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor(example.answer), reduction="sum")
        loss.backward()
        total, count = total + loss.item(), count + len(example.answer)

    model = load_model(str(tiny.folder))
    arch = model.architecture
    adapter = load_adapter(folder, arch)
    (packed,) = pack_examples(in_memory(examples()), 32)
    assert len(packed) < 8
    rows = packed.take(np.arange(len(packed)))
    rows = {field.name: jnp.asarray(getattr(rows, field.name)) for field in fields(rows)}

    @jax.jit
    def both(parts, base):
        loss = lambda p: answer_loss(merge(arch, base), arch, join(p, scales(adapter)), rows, remat)  # noqa: E731
        return jax.value_and_grad(loss, has_aux=True)(parts)

    (found, tokens), gradients = both(trainable(adapter), model.state)
    assert int(tokens) == count
    assert float(found) == pytest.approx(total, rel=1e-5)
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
    assert len(theirs) == 2 * 7 * arch.layers
    for name, wanted in theirs.items():
        target, side = name.split(".")[-4], name.split("lora_")[1][0].lower()
        layer = int(name.split("layers.")[1].split(".")[0])
        assert distance(gradients[target][side][layer], wanted.T) < 1e-5 * 5, name
