"""Arrays as users have them give the value of their numbers, or a refusal that names what they are."""

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from mossa_jax.errors import Refusal
from mossa_jax.similarity.intake import real_array

X = np.random.default_rng(0).normal(size=(12, 5))


@pytest.mark.parametrize(
    ("value", "dtype", "numbers"),
    [
        (X.astype(">f8"), "float64", X),
        (X.astype(">f4"), "float32", X.astype("f4")),
        (X.astype("<f2"), "float16", X.astype("f2")),
        (X.astype(ml_dtypes.bfloat16), "bfloat16", X.astype(ml_dtypes.bfloat16)),
        (X.astype(ml_dtypes.float8_e4m3fn), "float32", X.astype(ml_dtypes.float8_e4m3fn)),
        (X.astype(np.longdouble), "float64", X),
        (np.asfortranarray(X), "float64", X),
        (np.repeat(X, 2, axis=0)[::-2], "float64", X[::-1]),
        ((X * 100).astype(">i2"), "float64", (X * 100).astype("i2")),
        (X > 0, "float64", X > 0),
        (X.tolist(), "float64", X),
        (pd.DataFrame(X), "float64", X),
        (np.ma.masked_array(X), "float64", X),
    ],
)
def test_numbers_stay_what_they_are_in_a_type_and_byte_order_of_this_machine(value, dtype, numbers):
    array = real_array(value, "x")
    assert type(array) is np.ndarray and array.dtype.name == dtype and array.dtype.isnative
    np.testing.assert_array_equal(array.astype(np.float64), np.asarray(numbers).astype(np.float64))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (X.astype(complex), "dtype complex128"),
        (X.astype(object), "dtype object; give real numbers"),
        (X.astype(str), "give real numbers"),
        (X.astype("datetime64[s]"), "dtype datetime64"),
        (np.zeros(4, [("a", float)]), "give real numbers"),
        (pd.DataFrame({"a": ["b"]}), "dtype object"),
        (None, "dtype object"),
        ([[1, 2], [3]], "is a list and no array"),
        (sparse.csr_matrix(X), "give x.toarray()"),
        (np.ma.masked_array(X, X > 1), f"has {int((X > 1).any(1).sum())} rows with masked cells"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused_by_name(value, words):
    with pytest.raises(Refusal) as caught:
        real_array(value, "x")
    assert caught.value.code == 3 and str(caught.value).startswith("x ") and words in str(caught.value)
