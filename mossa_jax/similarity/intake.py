"""Arrays as users have them: NumPy, JAX, torch, pandas, masked, of any byte order and number type."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mossa_jax.errors import BAD_INPUT, Refusal


def real_array(value: Any, name: str) -> np.ndarray | jax.Array:
    """Returns an array of real numbers as NumPy or JAX holds it on this host.

    A tensor of torch may require gradients; one on another device is refused, as copying it is its owner's decision.
    Integers, truth values and long doubles become float64, which rounds a long double and integers beyond 2^53.

    Args:
      value: an array, a tensor, a table of numbers, or a list of lists.
      name: of the argument, for messages.

    Returns:
      An array of float16, bfloat16, float32 or float64 in the machine's byte order, of any shape.

    Raises:
      Refusal: 3 for what is no array of real numbers, has masked or missing cells, or lies on another device.
    """
    if isinstance(value, jax.Array):
        return _as_real(value, value.dtype, name)
    if type(value).__module__.partition(".")[0] == "torch":
        return _as_real(array := _of_torch(value, name), array.dtype, name)
    if hasattr(value, "toarray"):
        raise Refusal(BAD_INPUT, f"{name} is a sparse matrix; give {name}.toarray()")
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            count = int(np.ma.getmaskarray(value).any(axis=-1).sum()) if value.ndim else 1
            raise Refusal(BAD_INPUT, f"{name} has {count} rows with masked cells; leave them out on both sides")
        value = value.data
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the type at hand raises when it is no array
        raise Refusal(
            BAD_INPUT, f"{name} is a {type(value).__name__} and no array ({error}); give numbers [rows, width]"
        ) from None
    return _as_real(array, array.dtype, name)


def _of_torch(tensor: Any, name: str) -> np.ndarray:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise Refusal(BAD_INPUT, f"{name} is a {type(tensor).__name__} and no dense tensor; give numbers [rows, width]")
    if tensor.device.type != "cpu":
        raise Refusal(BAD_INPUT, f"{name} is a tensor on {tensor.device}; give {name}.cpu()")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        # NumPy has no such type of its own; the bits are the same.
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise Refusal(BAD_INPUT, f"{name} is a tensor of {tensor.dtype} ({error}); give {name}.float()") from None


def _as_real(array: Any, dtype: Any, name: str) -> Any:
    """Returns an array in one of the number types of states, in the machine's byte order."""
    is_real = jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
    if not is_real and np.dtype(dtype).kind != "b":
        hint = "; texts and objects are none" if np.dtype(dtype).kind == "O" else ""
        raise Refusal(BAD_INPUT, f"{name} has dtype {dtype}; give real numbers{hint}")
    if isinstance(array, jax.Array) and dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        # It may be spread over devices, and stays there.
        return array
    if jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize <= 8:
        # Small types of eight bits have no program of their own.
        kept = np.dtype(dtype).newbyteorder("=") if np.dtype(dtype).itemsize > 1 else np.float32
        return np.asarray(array).astype(kept, copy=False)
    return np.asarray(array).astype(np.float64)
