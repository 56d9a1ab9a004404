"""FLAN 2021: names, clusters, selections, joined tasks, and the mixture that its sizes give."""

import re
from collections import Counter

import pytest

from mossa_jax.config import Tasks
from mossa_jax.errors import BAD_CONFIG, Refusal
from mossa_jax.tasks.flan import flan_suite, interleave_tasks
from mossa_jax.tasks.flan_names import FLAN_TASKS, select
from mossa_jax.tasks.flan_sources import NOT_IN_MIRROR
from mossa_jax.tasks.mixture import mixture_counts
from mossa_jax.tasks.suite import Example, Suite, Task

# Data sets a cluster, as the FLAN paper counts them (arXiv 2109.01652).
CLUSTERS = {
    "nli": 7, "reading_comprehension": 5, "closed_book_qa": 3, "commonsense": 4,
    "reading_comprehension_commonsense": 2, "coreference": 3, "paraphrase": 4, "sentiment": 4, "struct_to_text": 4,
    "summarization": 11, "translation": 8, "misc": 7,
}  # fmt: skip
MISC = {"coqa", "quac", "wic", "trec", "cola", "math_dataset", "fix_punct"}
EXTRA = {"true_case", "word_segment"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A mirror that has every task; its files are never read."""
    folder = tmp_path_factory.mktemp("mirror")
    for split in ("train", "test"):
        (folder / split).mkdir()
        for entry in FLAN_TASKS:
            (folder / split / f"{entry.name}_10templates_{split}.jsonl").touch()
    return folder


def suite_of(everything, selection):
    return flan_suite(Tasks(suite="flan2021", selection=selection, sources=(str(everything),)))


def make_suite(entries, held_out=()):
    return Suite("s", tuple(Task(entry.name, entry.cluster, lambda split: ()) for entry in entries), held_out)


def test_sixty_nine_names_each_in_one_cluster():
    names = [entry.name for entry in FLAN_TASKS]
    assert len(names) == len(set(names)) == 69
    assert Counter(entry.cluster for entry in FLAN_TASKS) == {
        "nli": 10, "reading_comprehension": 6, "closed_book_qa": 4, "commonsense": 4,
        "reading_comprehension_commonsense": 2, "coreference": 3, "paraphrase": 4, "sentiment": 4,
        "struct_to_text": 4, "summarization": 11, "translation": 8, "misc": 7, "text_formatting": 2,
    }  # fmt: skip
    assert {entry.name for entry in FLAN_TASKS if entry.cluster == "text_formatting"} == EXTRA
    assert set(NOT_IN_MIRROR) == {"newsroom", "winogrande", "xsum"} < set(names)


def test_names_in_the_submix_are_plain_and_of_one_task_each():
    names = {entry.name: entry.submix for entry in FLAN_TASKS}
    assert [name for name, submix in names.items() if not submix] == ["mnli_mismatched"]
    assert len(set(names.values())) == 69
    assert not any(re.search(r":[\d.]+$", submix) for submix in names.values())
    told = {
        "winogrande": "winogrande", "newsroom": "newsroom", "xsum": "huggingface:xsum",
        "arc_challenge": "ai2_arc/ARC-Challenge", "wsc": "super_glue/wsc.fixed", "mnli_matched": "glue/mnli",
        "dart": "gem/dart", "wmt14_enfr": "wmt14_translate/fr-en", "fix_punct": "fix_punct",
        "opinion_abstracts_idebate": "opinion_abstracts_idebate", "para_crawl_enes": "para_crawl_enes",
    }  # fmt: skip
    assert told.items() <= names.items()


def test_paper_takes_67_and_holds_out_the_seven_of_misc(everything):
    suite = suite_of(everything, "paper")
    names = [task.name for task in suite.tasks]
    assert len(names) == 67 and not EXTRA & set(names)
    assert len(suite.held_out) == 7 and set(suite.held_out) == MISC
    trained = {task.cluster for task in suite.tasks if task.name not in suite.held_out}
    assert trained == set(CLUSTERS) - {"misc"}
    assert suite.missing == ()


def test_flan62_counts_as_flan_does(everything):
    suite = suite_of(everything, "flan62")
    assert {cluster: len(tasks) for cluster, tasks in suite.clusters().items()} == CLUSTERS
    assert len({task.name for task in suite.tasks}) == sum(CLUSTERS.values()) == 62
    assert {"anli", "mnli", "squad", "arc"} < {task.name for task in suite.tasks}
    assert suite.held_out == ()


def test_all69_holds_nothing_out(everything):
    suite = suite_of(everything, "all69")
    assert len(suite.tasks) == 69 and EXTRA < {task.name for task in suite.tasks}
    assert suite.held_out == ()


def test_an_unknown_selection_is_refused(everything):
    with pytest.raises(Refusal, match=r"selection='most'.*paper, flan62, all69") as caught:
        suite_of(everything, "most")
    assert caught.value.code == BAD_CONFIG


def test_the_mixture_meets_the_caps_exactly():
    entries = select("paper")
    rows = {entry.name: min(entry.rows, 30_000) for entry in entries}
    config = Tasks(suite="flan2021", mixture="capped", max_per_cluster=50_000)
    counts = mixture_counts(make_suite(entries), rows, config)
    totals = Counter()
    for entry in entries:
        totals[entry.cluster] += counts[entry.name]
    # hellaswag 30,000 + piqa 16,010 + story_cloze 1,670 + copa 350; winogrande 30,000 + 1,120 + 500.
    small = {"commonsense": 48_030, "coreference": 31_620}
    assert totals == {cluster: small.get(cluster, 50_000) for cluster in CLUSTERS}
    assert sum(totals.values()) == 579_650
    without = mixture_counts(make_suite(entries, tuple(MISC)), rows, config)
    assert sum(without.values()) == 529_650 and not MISC & set(without)
    # Of 69,100 rows of paraphrase: 2503.62, 21707.67 twice, 4081.04; the two spare rows go to the two of .67.
    assert [counts[name] for name in ("glue_mrpc", "glue_qqp", "paws_wiki", "stsb")] == [2503, 21708, 21708, 4081]
    # Of 62,950 rows of closed-book QA: 722.80, 1620.33, 23828.44 twice; two to spare, the earlier of equals first.
    assert [counts[name] for name in ("arc_challenge", "arc_easy", "natural_questions", "trivia_qa")] == [
        723, 1620, 23829, 23828,
    ]  # fmt: skip


def task_of(name, sizes, bad=None):
    """A task of rows name:0, name:1, ..."""
    counted = {}

    def read(split):
        for index in range(sizes[split]):
            if bad and index == bad:
                counted[split] = 1
                continue
            yield Example(f"{split} {name}:{index}", "t")

    return Task(name, "c", read, f"from {name}", lambda split: f"{name} {split} {sizes[split]}", counted)


def parts_and_numbers(task, split, limit=None):
    return [row.inputs.split(" ")[1].split(":") for row in task.examples(split, limit)]


def test_interleaved_tasks_keep_their_proportions_from_the_first_row_on():
    sizes = {"a": 10, "b": 30, "c": 60}
    task = interleave_tasks(
        "abc", [task_of(name, {"train": size, "validation": 0, "test": 1}) for name, size in sizes.items()]
    )
    rows = parts_and_numbers(task, "train")
    for name, size in sizes.items():
        assert [int(number) for part, number in rows if part == name] == list(range(size))
    for first in range(1, 101):
        given = Counter(part for part, _ in rows[:first])
        assert all(abs(given[name] - first * size / 100) <= 1 for name, size in sizes.items())
    assert parts_and_numbers(task, "train", 5) == rows[:5]
    assert task.examples("validation") == []
    assert sorted(part for part, _ in parts_and_numbers(task, "test")) == ["a", "b", "c"]
    assert (task.name, task.cluster, task.source) == ("abc", "c", "from a, from b, from c")


def test_training_rows_that_both_tasks_of_mnli_have_come_once():
    sizes = {"train": 4, "validation": 2, "test": 3}
    task = interleave_tasks("mnli", [task_of("mnli_matched", sizes), task_of("mnli_mismatched", sizes)])
    assert {part for part, _ in parts_and_numbers(task, "train")} == {"mnli_matched"}
    assert len(task.examples("train")) == 4
    for split, size in (("validation", 2), ("test", 3)):
        found = Counter(part for part, _ in parts_and_numbers(task, split))
        assert found == {"mnli_matched": size, "mnli_mismatched": size}


def test_interleaved_tasks_digest_every_task_and_count_their_bad_rows():
    sizes = {"train": 4, "validation": 2, "test": 3}
    more = {**sizes, "train": 5}
    task = interleave_tasks("ab", [task_of("a", sizes), task_of("b", sizes)])
    other = interleave_tasks("ab", [task_of("a", sizes), task_of("b", more)])
    assert task.fingerprint("train") != other.fingerprint("train")
    assert task.fingerprint("test") == other.fingerprint("test")
    bad = interleave_tasks("ab", [task_of("a", sizes, bad=1), task_of("b", sizes, bad=2)])
    assert len(bad.examples("train")) == 6 and bad.bad_rows["train"] == 2
    assert len(bad.examples("train")) == 6 and bad.bad_rows["train"] == 2
    assert "train" not in task.bad_rows


def test_items_of_interleaved_tasks_stay_apart():
    def part(name):
        return Task(
            name, "c", lambda split: (Example(f"{name} {n}", "x", item=str(n // 2) * (n < 4)) for n in range(5))
        )

    rows = interleave_tasks("ab", [part("a"), part("b")]).examples("test")
    named = [row.item for row in rows if row.item]
    assert sorted(Counter(named).values()) == [2, 2, 2, 2]
    assert all(row.item.startswith(f"{row.inputs[0]}: ") for row in rows if row.item) and len(rows) - len(named) == 2
