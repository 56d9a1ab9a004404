"""Every program of a run hands cuDNN what cuDNN takes: traced here with a stand-in for its door."""

import jax
import pytest

from mossa_jax.config import Mesh
from mossa_jax.tuning.population import StepSpec
from tests.support.all_programs import SEVEN, TWO, all_programs, check_operands

# Programs and how often each asks for attention: in a scan's body once, but for the last block or both kinds of blocks.
ATTEND = {"E", "controls", "scores", "prompts", "prefix", "states", "moments", "full", "profile"}


@pytest.fixture
def calls(monkeypatch):
    """The operands' shapes of every call of the door so far; XLA computes it."""
    library, made = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, mask, is_causal, implementation):
        assert implementation == "cudnn"
        check_operands(q, k, v, mask, is_causal)
        made.append((q.shape, k.shape, mask.shape))
        return library(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setenv("MOSSA_ATTENTION", "cudnn")
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    # As on a GPU, where slots are stacked; on a CPU a loop over them takes the place of the stack.
    monkeypatch.setattr(StepSpec, "loops_over_slots", False)
    return made


@pytest.mark.parametrize(
    ("family", "prefix", "targets"),
    [
        ("plain", True, TWO),
        ("plain", False, SEVEN),
        ("windowed", False, TWO),
        ("some_windowed", False, TWO),
        ("qwen3", True, SEVEN),
    ],
)
def test_every_program_hands_cudnn_operands_that_it_takes(calls, family, prefix, targets):
    for name, lower in all_programs(jax.devices()[:1], Mesh(1, 1, 1), family, prefix, targets).items():
        calls.clear()
        lower()
        assert bool(calls) == (name in ATTEND), name


def test_a_mask_that_all_models_share_is_not_copied(calls):
    programs = all_programs(jax.devices()[:1], Mesh(1, 1, 1), "plain", False, TWO)
    programs["states"]()
    # Four models of four heads over four rows: one mask for all sixteen heads.
    assert ((4, 192, 16, 128), (4, 192, 16, 128), (4, 1, 192, 192)) in calls
    calls.clear()
    programs["controls"]()
    # Two models with two rows each in a micro-batch: every row has its own mask.
    assert ((4, 192, 4, 128), (4, 192, 4, 128), (4, 1, 192, 192)) in calls
