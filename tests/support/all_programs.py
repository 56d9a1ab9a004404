"""Every program of a run at tiny sizes, over devices that need not exist, and what cuDNN asks of its operands."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mossa_jax.config import Mesh, Schedule, Tuning
from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.function.likelihood import read_rows
from mossa_jax.function.profile import profile_variants, sources
from mossa_jax.function.variant_schedule import schedule_size
from mossa_jax.function.variants import Turns, variant_losses
from mossa_jax.llama.adapters import abstract_adapters
from mossa_jax.llama.architecture import Architecture, architecture_from_config
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.placement import abstract_base
from mossa_jax.planning import programs
from mossa_jax.planning.sizes import NO_PREFIX, AdapterSize, Base, BatchSize, PrefixSize
from mossa_jax.similarity.lineup import Lineup
from mossa_jax.states import forward
from mossa_jax.states.forward import PassSpec, read_prefix
from mossa_jax.tuning import full_finetuning, population
from mossa_jax.tuning.batch import abstract_batch

_COMMON = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 3, "head_dim": 128,
    "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 1e4, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = {
    "plain": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "windowed": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 40,
                 "num_key_value_heads": 2},
    "some_windowed": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True,
                      "sliding_window": 40, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2},
}  # fmt: skip
"""Name -> fields of config.json."""
TWO = ("q_proj", "v_proj")
SEVEN = (*TWO, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LENGTH, _PREFIX, _PROMPTS = 192, 32, 100


def architecture(family: str) -> Architecture:
    return architecture_from_config(_COMMON | FAMILIES[family], family)


def all_programs(
    devices, mesh: Mesh, family: str, prefix: bool, targets: tuple[str, ...], dtype: str = "bfloat16"
) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """Returns what lowers each program of a run, by its stage; also `prefix`, `moments`, `full`, `profile`."""
    arch = architecture(family)
    grid, flat = mesh_lib.make_mesh(mesh, True, devices), mesh_lib.make_mesh(mesh, False, devices)
    tuned, compared = Base(arch, dtype, grid), Base(arch, dtype, flat)
    shared = PrefixSize(_PREFIX, 0) if prefix else NO_PREFIX
    adapters = lambda count: AdapterSize(count, 4, targets)  # noqa: E731
    rows, answers, pairs = max(4, flat.shape["fsdp"]), 24, Lineup().pairs
    controls = 2 * grid.shape["adapter"]
    lowered = {
        "E": programs.tuning_program(
            compared, adapters(1), BatchSize(rows, _LENGTH), answers, remat=False, prefix=shared
        ).lower,
        "controls": programs.tuning_program(
            tuned, adapters(controls), BatchSize(4, _LENGTH), answers, remat=True, parts=2, prefix=shared
        ).lower,
        "scores": programs.score_program(compared, adapters(3), BatchSize(rows, 96), 8).lower,
        "prompts": lambda: _prompts(arch, flat, rows, shared, targets),
        "likelihoods": programs.likelihood_program(
            compared, adapters(3), BatchSize(rows, _LENGTH), answers, prefix=shared
        ).lower,
        "states": programs.states_program(
            compared, adapters(4), BatchSize(rows, _LENGTH), _PROMPTS, prefix=shared
        ).lower,
        "moments": programs.states_program(
            compared, adapters(4), BatchSize(rows, _LENGTH), _PROMPTS, pool="mean", prefix=shared, pairs=pairs
        ).lower,
        "similarity": programs.similarity_program(compared, 4, _PROMPTS, pairs, 20).lower,
        "full": lambda: _full(arch, flat, rows, answers, shared),
        "profile": lambda: _profile(arch, flat, rows, answers, shared, targets),
    }
    if prefix:
        lowered["prefix"] = lambda: _prefix(arch, flat, targets)
    return lowered


def _prefix(arch: Architecture, mesh: jax.sharding.Mesh, targets: tuple[str, ...]) -> jax.stages.Lowered:
    spec = PassSpec(arch, "last", _PREFIX, 0, 0, mesh)
    base, adapters, *_ = forward.abstract_arguments(
        spec, dtype="bfloat16", models=4, rank=4, targets=targets, rows=mesh.shape["fsdp"], row_length=_LENGTH
    )
    tokens = mesh_lib.abstract(mesh, (1, _PREFIX), (None, None), jnp.int32)
    return read_prefix.lower(arch, mesh, base, adapters, tokens, mesh_lib.abstract(mesh, (), (), jnp.int32))


def _prompts(
    arch: Architecture, mesh: jax.sharding.Mesh, rows: int, shared: PrefixSize, targets: tuple[str, ...]
) -> jax.stages.Lowered:
    spec = PassSpec(arch, "last", shared.columns, shared.max_own, 0, mesh)
    arguments = forward.abstract_arguments(
        spec, dtype="bfloat16", models=3, rank=4, targets=targets, rows=rows, row_length=_LENGTH
    )
    return read_rows.lower(spec, *arguments)


def _profile(
    arch: Architecture, mesh: jax.sharding.Mesh, rows: int, answers: int, shared: PrefixSize, targets: tuple[str, ...]
) -> jax.stages.Lowered:
    size = schedule_size(sources(profile_variants(arch.layers)), 2)
    return variant_losses.lower(
        arch,
        mesh,
        abstract_base(arch, mesh, jnp.bfloat16),
        abstract_adapters(arch, mesh, 3, 4, targets),
        Turns.abstract(mesh, arch.layers, size),
        abstract_batch(mesh, (rows,), _LENGTH, answers),
        slots=size.slots,
        prefix=shared.columns,
        max_own=0,
    )


def _full(
    arch: Architecture, mesh: jax.sharding.Mesh, rows: int, answers: int, shared: PrefixSize
) -> jax.stages.Lowered:
    model = Model("tiny", None, arch, abstract_base(arch, mesh, jnp.bfloat16), mesh)
    optimizer = population.optimizer_for(Tuning(), Schedule())
    _, where = full_finetuning.make_initialize(model, optimizer)
    arguments = full_finetuning.abstract_arguments(model, optimizer, rows=rows, row_length=_LENGTH, answers=answers)
    spec = full_finetuning.FullStepSpec(model, optimizer, where, prefix=shared.columns)
    return full_finetuning.make_step(spec).lower(*arguments)


def check_operands(q, k, v, mask, is_causal: bool = False) -> None:
    """Fails unless cuDNN takes attention with operands of these shapes and dtypes, forward and backward.

    Source: the checks of cudnn-frontend's scaled_dot_product_flash_attention.h, for all versions and architectures.

    Args:
      q: [B, S, H, d]; k, v: [B, T, K, d]; mask: (1 or B, 1 or H, S, T), or None.
      is_causal: whether the causal pattern, from the top left corner, is asked for beside the mask.
    """
    batch, queries, heads, width = q.shape
    assert k.shape == v.shape and k.shape[0] == batch and k.shape[3] == width, (q.shape, k.shape, v.shape)
    assert {str(x.dtype) for x in (q, k, v)} <= {"bfloat16", "float16"} and q.dtype == k.dtype == v.dtype
    assert heads % k.shape[2] == 0, (heads, k.shape[2])
    assert width % 8 == 0 and width <= 128, width
    # The backward pass takes even lengths only, and before cuDNN 9.5 whole blocks of 64.
    assert queries % 64 == 0 and k.shape[1] % 64 == 0, (queries, k.shape[1])
    assert not is_causal or queries == k.shape[1], "the causal pattern would count from the wrong corner"
    if mask is not None:
        assert mask.shape[0] in (1, batch) and mask.shape[1] in (1, heads), (mask.shape, q.shape)
        assert mask.shape[2:] == (queries, k.shape[1]), (mask.shape, q.shape, k.shape)


def check_calls(text: str) -> int:
    """Checks every call of cuDNN's attention in a compiled program, and returns how many there are."""
    calls = [line for line in text.splitlines() if '"__cudnn$fmha' in line]
    for line in calls:
        listed = re.search(r"operand_layout_constraints=\{(.*?)\}, (?!\w+\[)", line)[1]
        operands = [
            jax.ShapeDtypeStruct(tuple(map(int, sizes.split(","))), {"bf16": jnp.bfloat16, "f32": np.float32}[kind])
            for kind, sizes in re.findall(r"(bf16|f32)\[([\d,]+)\]", listed)
        ]
        q, k, v, *rest = operands
        # Forward: the mask. Backward: the normalisers, the gradient, the mask, the output.
        mask = rest[2] if "Backward" in line else rest[0]
        check_operands(q, k, v, mask)
        if "Backward" in line:
            stats, gradient, _, out = rest
            assert stats.shape == (q.shape[0], q.shape[2], q.shape[1]), (stats.shape, q.shape)
            assert gradient.shape == out.shape == q.shape
        assert '"mask_type":"CAUSAL"' not in line.replace(" ", "") or q.shape[1] == k.shape[1]
    return len(calls)
