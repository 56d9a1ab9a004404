"""Results in JSON's own types."""

import math
from typing import Any

import numpy as np
import pandas as pd


def to_json_types(value: Any) -> Any:
    """Converts a value to JSON's own types.

    Args:
      value: dicts, lists, tuples, arrays, Series, scalars and strings, nested in any way.

    Returns:
      The same value with NumPy scalars, arrays and Series unwrapped, keys as strings, NaN and infinities as None.
    """
    if type(value) in (str, int, bool):
        return value
    if isinstance(value, dict):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return [to_json_types(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
