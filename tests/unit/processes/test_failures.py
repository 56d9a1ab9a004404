"""Errors of the system and of libraries are told in one line, with the exit code that their kind has."""

import errno
import os

import jinja2
import pyarrow as pa
import pytest
from safetensors import SafetensorError

from mossa_jax.errors import Refusal
from mossa_jax.processes.failures import explain

CODES = {
    2: "ENOENT EACCES EPERM EROFS EISDIR ENOTDIR ENAMETOOLONG ELOOP EINVAL EEXIST ENOTEMPTY EMFILE ENFILE ENOMEM",
    4: "ECONNREFUSED ECONNRESET ETIMEDOUT EHOSTUNREACH ENETUNREACH",
    6: "ENOSPC EDQUOT EFBIG EIO ESTALE",
}


@pytest.mark.parametrize(("code", "name"), [(code, name) for code, names in CODES.items() for name in names.split()])
def test_an_error_of_the_system_has_one_line_the_place_and_the_code_of_its_kind(code, name):
    number = getattr(errno, name)
    refusal = explain(OSError(number, os.strerror(number), "/some/place"))
    assert refusal.code == code and "\n" not in str(refusal)
    assert "/some/place" in str(refusal) and os.strerror(number) in str(refusal) and "; " in str(refusal)


def test_limits_are_named_with_the_command_that_raises_them():
    assert "ulimit -n" in str(explain(OSError(errno.EMFILE, "Too many open files", "x")))
    assert "ulimit -f" in str(explain(OSError(errno.EFBIG, "File too large", "x")))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 2, "needs more memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), 2, "a device needs more memory"),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), 2, "pip install 'mossa_jax[track]'"),
        (ModuleNotFoundError("No module named 'gcsfs.core'", name="gcsfs.core"), 2, "pip install 'mossa_jax[gcs]'"),
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), 2, "pip install 'tiktoken'"),
        (ImportError("\nX requires the Y library\nmore"), 2, "X requires the Y library; install"),
        (pa.ArrowInvalid("Parquet magic bytes not found"), 3, "magic bytes not found"),
        (SafetensorError("header too large"), 3, "header too large"),
        (OSError("Can't load tokenizer for 'x'"), 3, "Can't load tokenizer"),
        (ValueError("NOT_FOUND: Error writing /x: No space left on device [source]"), 6, "No space left"),
        (RuntimeError("I/O error: Too many open files (os error 24)"), 2, "ulimit -n"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 4, "no connection"),
        (TimeoutError("timed out"), 4, "no connection"),
        (Refusal(3, "as it was"), 3, "as it was"),
    ],
)  # fmt: skip
def test_errors_of_libraries_are_told_too(error, code, words):
    refusal = explain(error)
    assert refusal.code == code and words in str(refusal) and "\n" not in str(refusal)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("name"), TypeError("not callable"), AssertionError(), ZeroDivisionError(), IndexError("range"),
        RuntimeError("INTERNAL: compilation failed"), ValueError("shapes (2, 3) and (3, 4)"),
        ModuleNotFoundError("No module named 'mossa_jax.nowhere'", name="mossa_jax.nowhere"),
        jinja2.UndefinedError("the page has no such value"),
    ],
)  # fmt: skip
def test_an_error_of_the_program_is_none_of_these(error):
    assert explain(error) is None
