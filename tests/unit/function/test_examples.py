"""The example prompts of a task: which are chosen, and what is kept of their texts."""

import pytest

from mossa_jax.function.examples import LONGEST, MODELS, choose_examples, cut_text, example_rows, is_exact

TARGETS = ["a", "b", "c", "d", "e", "f"]


def answers(base, tuned, control):
    """Answers to prompts whose targets are the letters: "+" is right, another sign is the answer itself."""
    sides = dict(zip(MODELS, (base, tuned, control), strict=True))
    return {
        label: [target if sign == "+" else sign for sign, target in zip(signs, TARGETS, strict=False)]
        for label, signs in sides.items()
    }


@pytest.mark.parametrize(
    ("base", "tuned", "control", "wanted"),
    [
        # Prompt 3 shows the gain, 2 tells E from the specialist, 0 is the first of the rest.
        ("xx+xxx", "xx+++x", "xx-+++", [0, 2, 3]),
        # No gain: the place is taken by the first of the rest.
        ("++++++", "++++x+", "++++++", [0, 1, 4]),
        # Neither is right where they differ.
        ("xxxxxx", "xxxyxx", "xxxxxx", [0, 1, 3]),
        # Nothing tells any two prompts apart.
        ("xxxxxx", "xxxxxx", "xxxxxx", [0, 1, 2]),
        ("xx", "+x", "++", [0, 1]),
        ("x", "+", "+", [0]),
    ],
)
def test_examples_are_one_of_the_gain_one_that_differs_and_one_of_the_rest(base, tuned, control, wanted):
    texts = answers(base, tuned, control)
    assert choose_examples(texts, TARGETS[: len(base)]) == wanted


def test_rows_hold_every_model_s_answer_beside_the_target():
    texts = {"base": ["no", "x"], "tuned": [" yes\n", "b"], "control": ["yes", "c"]}
    rows = example_rows(texts, ["yes", "b"], "prompt {}".format)
    assert [(row["example"], row["model"], row["answer"], row["exact"]) for row in rows] == [
        (1, "base", "no", False),
        (1, "tuned", " yes\n", True),
        (1, "control", "yes", True),
        (2, "base", "x", False),
        (2, "tuned", "b", True),
        (2, "control", "c", False),
    ]
    assert rows[3]["prompt"] == "prompt 1" and rows[3]["target"] == "b"


def test_long_texts_lack_their_middle_and_say_how_much():
    text = "a" * 3000 + "b" * 3000
    short = cut_text(text)
    assert short.startswith("a" * 1000 + " [") and short.endswith("] " + "b" * 1000) and "4,000 characters" in short
    assert cut_text("c" * LONGEST) == "c" * LONGEST
    rows = example_rows({label: [text] for label in MODELS}, [text + "c"], lambda row: text)
    assert {row[key] for row in rows for key in ("prompt", "answer")} == {short}
    # Whether an answer is right is told from the whole texts.
    assert not rows[0]["exact"] and is_exact(f" {text}\n", text)
