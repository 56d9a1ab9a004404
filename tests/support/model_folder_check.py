"""Compares a model folder of `model_folders` with transformers: ids, states of every layer, greedy answers."""

import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.llama.adapters import stack, zero_adapter
from mossa_jax.llama.generate import greedy
from tests.support.model_folder_cases import CASES
from tests.support.model_folders import TEXTS, Case, torch_answers, torch_ids, torch_states

NEW = 6


def ours(folder: pathlib.Path, case: Case) -> tuple[list[list[int]], np.ndarray, list[list[int]] | None]:
    """Returns ids, states as `torch_states` orders them, and answers up to and with their stop."""
    model = mossa.load_model(str(folder))
    tokenizer = model.tokenizer(case.template)
    ids = tokenizer.prompts(TEXTS)
    named = mossa.layer_states(model, TEXTS, template=case.template)
    # transformers gives the last block's output after the final norm alone.
    states = np.stack([named[name] for name in named if name != str(model.architecture.layers)])
    if not case.answers:
        assert not model.has_head
        return ids, states, None
    eos = tuple(dict.fromkeys((*model.architecture.eos, *tokenizer.stops))) or (-1,)
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, : len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in ids])
    stacked = stack(model.architecture, [zero_adapter(model.architecture)])
    written = greedy(model.architecture, model.state, stacked, jnp.asarray(tokens), lengths, eos=eos, new_tokens=NEW)
    answers = []
    for row in np.asarray(written)[0].tolist():
        end = next((place + 1 for place, each in enumerate(row) if each in eos), NEW)
        answers.append(row[:end])
    return ids, states, answers


def check(name: str, base: pathlib.Path, place: pathlib.Path) -> str:
    """Makes a folder of a copy of `base` in `place`, and compares it.

    Returns:
      "equal", or the refusal's text.

    Raises:
      AssertionError: something differs from transformers, or the refusal is another one.
    """
    case = CASES[name]
    folder = pathlib.Path(shutil.copytree(base, place / "folder"))
    case.write(folder)
    try:
        ids, states, answers = ours(folder, case)
    except Refusal as refusal:
        message = str(refusal)
        assert case.refusal, f"{name}: refused: {message}"
        assert refusal.code == 3 and "\n" not in message, message
        assert re.search(case.refusal, message), message
        return message
    assert not case.refusal, f"{name}: not refused"
    oracle = folder
    if case.oracle is not None:
        oracle = pathlib.Path(shutil.copytree(base, place / "oracle"))
        case.oracle(oracle)
    expected = torch_ids(oracle, case.template)
    assert ids == expected, (ids[0], expected[0])
    wanted = torch_states(oracle, expected)
    assert wanted.shape == states.shape
    error = np.linalg.norm(states - wanted, axis=(1, 2)) / np.linalg.norm(wanted, axis=(1, 2))
    assert error.max() < 1e-5, error
    if answers is not None:
        assert answers == torch_answers(oracle, expected)
    return "equal"
