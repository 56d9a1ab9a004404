"""Cards of exported models: what they say, and that no name can leave its place."""

import pytest
from huggingface_hub import ModelCard

from mossa_jax.llama.files.card import code, model_card

SCHEDULE = {
    "method": "lora", "optimizer": "adamw", "epochs": 1, "max_steps": 0, "batch_rows": 4, "parts": 1,
    "learning_rate": 5e-5,
}  # fmt: skip
ABOUT = {
    "model": "rte", "tasks": ["rte"], "answers": "own", "rows": 1200, "truncated_rows": 3, "steps": 90,
    "packed_rows": 300, "seed": [0, 17], "revision": "v1",
    "template": {"name": "none", "text": "{content}", "digest": "9e5a"},
    "tuning": {
        "rank": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"], "first_layer": 2, "warmup": 0.1,
        "weight_decay": 0.0, "control": SCHEDULE, "experimental": SCHEDULE | {"learning_rate": 1e-3},
    },
    "sources": {"rte": {"cluster": "inference", "source": "org/data@0123abcd", "licence": "CC BY 4.0"}},
    "versions": {"mossa_jax": "1.2"},
}  # fmt: skip
E = {"model": "tuned", "tasks": ["rte", "boolq"], "mixture": {"rte": 900, "boolq": 100}}


def score(task, of, metric, value, held_out=False):
    return {
        "task": task, "held_out": held_out, "of": of, "metric": metric, "value": value, "low": value - 0.1,
        "high": value + 0.1, "n": 64,
    }  # fmt: skip


def test_a_card_says_what_the_model_is_made_of():
    card = model_card(ABOUT, "meta-llama/Llama-3.2-1B")
    header = ModelCard(card).data
    assert header.base_model == "meta-llama/Llama-3.2-1B" and header.library_name == "peft"
    assert header.datasets == ["org/data"] and header.license == "other"
    assert "lora" in header.tags and "base_model:adapter:meta-llama/Llama-3.2-1B" in header.tags
    for words in (
        "The specialist of the task `rte`: a LoRA adapter tuned on this task alone.",
        "Base model: `meta-llama/Llama-3.2-1B`, revision `v1`.\n",
        "| `rte` | `inference` | 1,200 | `CC BY 4.0` | `org/data@0123abcd` |",
        "3 training rows were too long and cut.",
        "digest `9e5a`",
        "| rank | 8 |",
        "| first block with an adapter | 3 |",
        "| peak learning rate | 5e-05 |",
        "| seed | 0, 17 |",
        "AutoModelForCausalLM.from_pretrained('meta-llama/Llama-3.2-1B', revision='v1')",
        "mossa export --base=meta-llama/Llama-3.2-1B --revision=v1 --adapter=THIS_FOLDER",
        "Not scored yet.",
        "Licence of the data as its source states it: `CC BY 4.0`.",
        "mossa_jax 1.2",
    ):
        assert words in card, words
    assert "on the machine" not in card  # the base is a hub id


@pytest.mark.parametrize(
    ("change", "words", "is_of_use"),
    [
        (E, "The experimental model E: a LoRA adapter tuned on a mixture of 2 tasks.", True),
        (E | {"model": "tuned.seed1"}, "repetition with another seed (number 1)", True),
        ({"model": "rte.seed2"}, "A second specialist of the task `rte` (seed 2)", True),
        ({"model": "rte.twin", "answers": "permuted"}, "The *twin* of the specialist of the task `rte`", False),
        ({"steps": 45, "of_steps": 90}, "A snapshot after 45 of 90 steps", False),
        ({"settings": {"specialists": ["a", "b", "c"]}}, "The mean of the updates of 3 specialists", True),
    ],
)
def test_a_card_says_plainly_which_model_it_is(change, words, is_of_use):
    card = model_card(ABOUT | change, "org/base")
    assert words in card and ("**Not for use**" in card) != is_of_use


def test_the_card_of_e_has_its_own_schedule_and_its_share_of_each_task():
    sources = {"rte": {"cluster": "a", "source": "here", "licence": ""}, "boolq": ABOUT["sources"]["rte"]}
    card = model_card(ABOUT | E | {"sources": sources}, "/models/base")
    assert "| peak learning rate | 0.001 |" in card
    assert "| `rte` | `a` | 900 | unknown | `here` |" in card and "| `boolq` | `inference` | 100 |" in card
    assert "Of 1 task the source states none." in card and "a folder on the machine" in card


@pytest.mark.parametrize("base", ["/models/base", "../base", "./base", "models/base", "base"])
def test_a_base_in_a_folder_is_no_hub_id(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/base").mkdir(parents=True)
    card = model_card(ABOUT, base)
    assert "a folder on the machine" in card and not any(
        tag.startswith("base_model") for tag in ModelCard(card).data.tags
    )


def test_without_a_stated_licence_it_is_unknown():
    sources = {"rte": {"cluster": "a", "source": "here", "licence": ""}}
    card = model_card(ABOUT | {"sources": sources}, "org/base")
    assert ModelCard(card).data.license == "unknown" and "The licence of the data is unknown" in card
    assert ModelCard(model_card({}, "org/base")).data.license == "unknown"


def test_scores_stand_beside_those_of_the_base():
    scores = [score("rte", of, "exact_match", value) for of, value in (("model", 0.75), ("base", 0.5))]
    scores += [score("x|y", "model", "information", -0.25, held_out=True)]
    card = model_card(ABOUT, "org/base", scores=scores)
    assert "| task | prompts | exact match | the base's | information, nats | the base's |" in card
    assert "| `rte` | 64 | 0.75 [0.65, 0.85] | 0.50 [0.40, 0.60] |  |  |" in card
    assert "| `x\\|y` (held out) | 64 |  |  | \N{MINUS SIGN}0.25 [\N{MINUS SIGN}0.35, \N{MINUS SIGN}0.15] |  |" in card


def test_the_card_of_a_whole_model():
    card = model_card({"model": "tuned"}, "org/base", is_whole=True)
    header = ModelCard(card).data
    assert header.library_name == "transformers" and "lora" not in header.tags and "PeftModel" not in card


@pytest.mark.parametrize(
    "name",
    ["a\n---\nlicense: mit\n---\n# x", "a`b``c", "`", "x | y", "<script>", "[x](javascript:y)", "{{ y }}", "\x1b[31m",
     "\u202eevil", "\ud800", "```\n# x", ": {", "- a", "é 漢"],
)  # fmt: skip
def test_names_cannot_leave_their_place(name):
    sources = {name: {"cluster": name, "source": name, "licence": name}}
    about = ABOUT | {"model": name, "tasks": [name], "sources": sources, "revision": name, "template": {
        "name": name, "text": name, "digest": name}}  # fmt: skip
    card = model_card(about, name, scores=[score(name, "model", "rouge_l", 0.5)])
    plain = model_card(ABOUT, "x", scores=[score("rte", "model", "rouge_l", 0.5)])
    data, wanted = ModelCard(card).data.to_dict(), ModelCard(plain).data.to_dict()
    assert data.pop("base_model") == name and data.keys() | {"datasets", "base_model"} == wanted.keys()
    assert data["license"] == "other"
    # The same headings and as many rows of tables: outside of code nothing has become Markdown.
    for shape in (headings, table_rows):
        assert shape(card) == shape(plain)
    card.encode()


def blocks(card):
    """The lines outside of fenced blocks."""
    lines, fence = [], ""
    for line in card.splitlines():
        ticks = line[: len(line) - len(line.lstrip("`"))]
        if not fence and len(ticks) >= 3:
            fence = ticks
        elif fence and line == fence:
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence
    return lines


def headings(card):
    return [line for line in blocks(card.split("\n---\n", 1)[1]) if line.startswith("## ")]


def table_rows(card):
    return [len(line.replace("\\|", "").split("|")) for line in blocks(card) if line.startswith("| ")]


@pytest.mark.parametrize(
    ("text", "wanted"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("", "` `"), ("a\nb", "`a\\nb`")]
)
def test_code_spans(text, wanted):
    assert code(text) == wanted
