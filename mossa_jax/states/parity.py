"""Parity: the states of every layer and the logits of a model, compared with those of transformers on torch."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from mossa_jax.devices import mesh as mesh_lib
from mossa_jax.errors import BAD_INPUT, Refusal
from mossa_jax.llama.architecture import Architecture
from mossa_jax.llama.attention import Segments
from mossa_jax.llama.files.load import Model
from mossa_jax.llama.model import logits, merge, parameter_count, run_blocks

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("layer", "max_abs_difference", "largest")
_MEMORY = epath.Path("/proc/meminfo")
# Bytes that a model may take on systems that do not say how much memory is available.
_LIMIT_ELSEWHERE = 2e9
# Parameters; below this, torch's thread pool beside XLA's costs more than it gains.
_ONE_THREAD = 2**27


def parity_or_reason(arch: Architecture, inputs: Callable[[], tuple[Model, list[list[int]]]]) -> pd.DataFrame | str:
    """Runs `parity` if this host can; all processes have to call this together.

    Args:
      arch: the model's architecture, which decides whether it can be checked at all.
      inputs: returns the model and the prompts; called only if they are used.

    Returns:
      The table, or in words why there is none. Processes other than the first always get a reason.
    """
    if reason := parity_obstacle(arch):
        return reason
    model, prompts = inputs()
    try:
        table = parity(model, prompts)
    except Refusal as refusal:
        return str(refusal)
    return "another process checks it" if table is None else table


def relative_differences(table: pd.DataFrame) -> np.ndarray:
    """Returns each layer's largest difference as a share of the reference's largest value: [L + 3] float64."""
    return table["max_abs_difference"].to_numpy(float) / table["largest"].to_numpy(float)


def parity_obstacle(arch: Architecture) -> str:
    """Returns why a model of `arch` cannot be checked on process 0's host; "" if it can. All processes agree."""
    # Only process 0 runs torch, so its host alone counts. The others learn that it cannot, but not why.
    reason = _host_obstacle(arch) if jax.process_index() == 0 else ""
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.asarray(bool(reason))):
        return reason or "process 0 cannot check it"
    return reason


def _host_obstacle(arch: Architecture) -> str:
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed"
    except OSError as error:
        return f"torch cannot be imported ({_why(error)})"
    # The reference holds every weight in float32, 4 bytes each.
    needed, available = 4 * parameter_count(arch), _available_memory()
    if available is None:
        if needed > _LIMIT_ELSEWHERE:
            return (
                f"the model in float32 takes {needed / 1e9:.1f} GB, above the limit of {_LIMIT_ELSEWHERE / 1e9:.0f} GB "
                "on systems that do not say how much memory is available"
            )
    elif needed > available / 2:
        return (
            f"the model in float32 takes {needed / 1e9:.1f} GB, more than half of the {available / 1e9:.1f} GB of "
            "memory available on this host"
        )
    return ""


def _available_memory() -> int | None:
    """Returns the available memory in bytes; None on systems that do not say."""
    if not _MEMORY.exists():
        return None
    fields = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    # The kernel writes kB and means 1,024 bytes.
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def parity(model: Model, prompts: list[list[int]]) -> pd.DataFrame | None:
    """Compares a model with transformers on torch in float32, from the same folder, at every token of some prompts.

    Args:
      model: from `load_model`; it runs on its own mesh, in its own number type.
      prompts: token ids; at least one prompt, and none of them empty.

    Returns:
      One row per layer name ("embed", "1".."L" as the blocks return them, "final_norm") and one for "logits", with
      the columns `layer, max_abs_difference, largest`; `largest` is the largest absolute value of the reference. None
      in processes other than the first, which only take part in the forward pass.

    Raises:
      Refusal: 3 if transformers cannot load or run the folder (process 0 only).
      ImportError: torch is not installed.
    """
    import pandas as pd

    # All processes take part here: the weights may be spread over their devices.
    ours = _states_and_logits(model, prompts)
    if jax.process_index() != 0:
        return None
    small = parameter_count(model.architecture) < _ONE_THREAD
    try:
        with _torch_settings(one_thread=small):
            differences = _differences(model.folder, prompts, ours)
    except ImportError:
        raise
    except Exception as error:  # transformers raises errors of many types, and a check must not break what it checks
        raise Refusal(BAD_INPUT, f"transformers cannot run {model.folder} ({_why(error)})") from None
    finally:
        gc.collect()  # torch's modules refer to one another in cycles
    names = (*model.architecture.state_names(), "logits")
    rows = [(name, *pair) for name, pair in zip(names, differences.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _states_and_logits(model: Model, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns [n, S, D] of each layer and [n, S, V] of the logits, whole on every host; one padded row per prompt."""
    # [B, S], B a multiple of the fsdp axis. Rows that are added have segment 0 throughout and are cut off again.
    shape = (mesh_lib.round_up(len(prompts), model.mesh.shape["fsdp"]), max(map(len, prompts)))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, ids in enumerate(prompts):
        # One prompt per row, so that packing itself is not part of this check.
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    rows = [mesh_lib.place(model.mesh, array, ("rows", None)) for array in (tokens, positions, segments)]
    states, last = _forward(model.architecture, model.mesh, len(prompts), model.state, *rows)
    # L + 2 arrays [n, S, D] and one [n, S, V].
    return [*np.asarray(states.addressable_data(0)), np.asarray(last.addressable_data(0))]


@partial(jax.jit, static_argnames=("arch", "mesh", "count"))
def _forward(
    arch: Architecture,
    mesh: jax.sharding.Mesh,
    count: int,
    state: nnx.State,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    segments: Int[Array, "B S"],
) -> tuple[Float[Array, "L+2 n S D"], Float[Array, "n S V"]]:
    """Returns states and logits of the first n = `count` rows, whole on every device."""
    model = merge(arch, state)

    def first_rows(x: jax.Array, _: Any) -> jax.Array:
        return x[:count]

    # [B, S, D], [B, S, D], [L, n, S, D]
    embedded, last, layers = run_blocks(model, arch, {}, tokens, positions, Segments(segments, mesh), first_rows)
    # Two of [1, n, S, D].
    embedded, normed = (x[None, :count] for x in (embedded, model.final_norm(last)))
    # [L + 2, n, S, D], in the order of `Architecture.state_names`.
    states = jnp.concatenate([embedded, layers, normed])
    # `logits` applies the final norm itself. Whole on every device, so that process 0 can read all of it.
    return jax.lax.with_sharding_constraint((states, logits(model, arch, last[:count])), mesh_lib.replicated(mesh))


def _differences(folder: epath.Path, prompts: Sequence[Sequence[int]], ours: list[np.ndarray]) -> np.ndarray:
    """Returns the largest difference and the largest reference value over all tokens: [L + 3, 2] float64."""
    import torch
    from transformers import AutoModelForCausalLM

    # "eager" is the plain definition of attention, without a fused kernel. No code from the folder is run.
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager", use_safetensors=True, trust_remote_code=False
    ).eval()
    states: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        # [1, S, D]; a block of some versions returns a tuple that begins with its states.
        states.append(output[0] if isinstance(output, tuple) else output)

    # Hooks rather than the library's `hidden_states`, whose last entry has passed the final norm already.
    decoder = model.base_model
    for module in (decoder.embed_tokens, *decoder.layers, decoder.norm):
        module.register_forward_hook(keep)
    # [L + 3, 2]: the largest difference, and the largest absolute value of the reference.
    largest = np.zeros((len(ours), 2))
    # Shortest first: the library's dynamic RoPE remembers the longest sequence that it has seen.
    for row, ids in sorted(enumerate(prompts), key=lambda item: len(item[1])):
        states.clear()
        # One prompt at a time, unpadded: the reference never sees a padding token.
        with torch.no_grad():
            last = model(torch.tensor([list(ids)]), use_cache=False).logits
        for layer, (mine, theirs) in enumerate(zip(ours, [*states, last], strict=True)):
            # [S, D] or [S, V]. The difference is taken in float64, so that it adds no rounding of its own.
            theirs = theirs[0].numpy().astype(np.float64)
            difference = np.abs(theirs - mine[row, : len(ids)].astype(np.float64)).max()
            largest[layer] = np.maximum(largest[layer], (difference, np.abs(theirs).max()))
    return largest


@contextlib.contextmanager
def _torch_settings(one_thread: bool) -> Iterator[None]:
    """Sets torch's threads and hides transformers' progress bars, and restores both afterwards."""
    import torch
    from transformers.utils import logging

    threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    if one_thread:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if bars:
            logging.enable_progress_bar()


def _why(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {first[:200]}"
