"""examples/check_against_torch.py: it agrees with a sound run, and finds a cell, a base or an adapter that is not."""

import importlib
import shutil

import numpy as np
import pandas as pd
import pytest

from mossa_jax.config import Tokens
from mossa_jax.similarity import reference
from mossa_jax.tasks.miniature import TOKENIZER
from mossa_jax.tokens.tokenizer import encode_prompts, load_tokenizer
from tests.support import float64_cka
from tests.support.run_folders import rewrite, rewrite_table
from tests.support.tiny_llama import import_torch, random_texts

TEMPLATE = "{% for m in messages %}<s> {{ date_string }} user: {{ m['content'] }} {% endfor %}answer:"


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "examples"))
    return importlib.import_module("check_against_torch")


@pytest.fixture
def with_torch():
    import_torch()
    pytest.importorskip("peft")


@pytest.fixture
def folder(tiny_run, tmp_path):
    return shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))


def test_its_formulas_are_those_of_other_implementations(script):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(18, 7)) + 5
    y = x[:, :4] + rng.normal(size=(18, 4))
    items = np.array([0, 0, 0, 1, 1, *range(2, 15)])
    assert script.biased_cka(x, y) == pytest.approx(reference.biased(x, y), abs=1e-12)
    assert script.debiased_cka(x, y, np.arange(18)) == pytest.approx(float64_cka.debiased(x, y), abs=1e-12)
    assert script.debiased_cka(x, y, items) == pytest.approx(reference.debiased_by_items(x, y, items), abs=1e-10)
    assert abs(script.debiased_cka(x, y, items) - script.debiased_cka(x, y, np.arange(18))) > 1e-3
    # Both ways to the debiased value are one where every row is its own item.
    k, m = (z @ z.T for z in (x - x.mean(0), y - y.mean(0)))
    by_pairs = (script.without_additive_part(k, np.arange(18)) * script.without_additive_part(m, np.arange(18))).sum()
    assert by_pairs == pytest.approx(18 * 15 * script.unbiased_hsic(k, m))


def table_of_cells() -> pd.DataFrame:
    rows = [
        dict(experimental=model, control=control, task=task, layer=layer, estimator=estimator, undefined=reason)
        for task in "abcdefgh"
        for model, control in (("pretrained", task), ("tuned", task), ("tuned", "other"), ("control", task))
        for layer, reason in (("embed", "no variance"), ("1", ""), ("2", ""), ("final_norm", ""))
        for estimator in ("biased", "debiased")
    ]
    return pd.DataFrame(rows)


def test_a_draw_has_only_own_pairs_of_few_tasks_and_depends_on_its_seed(script):
    table = table_of_cells()
    drawn = script.draw_cells(table, 10, 3, 0)
    assert len(drawn) == len(drawn.index.unique()) == 10
    assert drawn.task.nunique() == 3 and drawn.task.value_counts().max() == 4
    assert (drawn.control == drawn.task).all() and (drawn.undefined == "").all()
    assert set(drawn.experimental) == {"pretrained", "tuned"} and set(drawn.estimator) == {"biased", "debiased"}
    assert drawn.index.tolist() == script.draw_cells(table, 10, 3, 0).index.tolist()
    others = [script.draw_cells(table, 10, 3, seed).index.tolist() for seed in range(1, 4)]
    assert all(other != drawn.index.tolist() for other in others)
    assert script.draw_cells(table, 2, 5, 0).task.nunique() == 2
    assert len(script.draw_cells(table, 1000, 2, 0)) == 2 * 2 * 3 * 2
    with pytest.raises(script.Refusal, match="no defined cell"):
        script.draw_cells(table.assign(undefined="no variance"), 10, 3, 0)


@pytest.mark.parametrize("template", ["none", "llama2", "chat"])
@pytest.mark.parametrize("truncation", ["keep_end", "paper"])
def test_it_encodes_prompts_as_the_run_does(script, template, truncation, tmp_path):
    transformers = pytest.importorskip("transformers")
    library = transformers.AutoTokenizer.from_pretrained(str(TOKENIZER))
    library.chat_template = TEMPLATE
    library.save_pretrained(tmp_path)
    library = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    own = load_tokenizer(tmp_path, template, bos=1, eos=(2,))
    texts = [*random_texts(5), "one two three four five six seven " * 20]
    limit = len(own.head) + 40
    wanted, cut = encode_prompts(own, texts, limit, truncation)
    tokens = Tokens(template=template, max_tokens=limit, truncation=truncation)
    lead = [1] if template != "chat" and library("a").input_ids[0] != 1 else []
    assert script.token_ids(library, texts, tokens, lead) == wanted and cut == 1
    assert max(map(len, wanted)) == limit


def test_it_agrees_with_a_sound_run(script, with_torch, tiny_run, capsys):
    assert script.main([str(tiny_run[1]), "--cells=12", "--tasks=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "layer", "model", "estimator", "table", "torch", "difference"]
    assert len(lines) == 14 and lines[-1].startswith("12 cells of 2 tasks: largest difference ")
    assert lines[-1].endswith("; 0 above 0.0001")
    stored = pd.read_parquet(tiny_run[1] / "results/cka.parquet")
    stored = stored[stored.control == stored.task].set_index(["task", "layer", "experimental", "estimator"]).cka
    for line in lines[1:-1]:
        *cell, value, recomputed, difference = line.split()
        assert float(value) == pytest.approx(stored[tuple(cell)], abs=1e-6)
        assert abs(float(value) - float(recomputed)) < 1e-5 and float(difference) < 1e-5


def test_a_cell_that_was_changed_is_found(script, with_torch, folder, capsys):
    table = pd.read_parquet(folder / "results/cka.parquet")
    is_changed = (table.layer == "2") & (table.experimental == "tuned") & (table.estimator == "debiased")
    rewrite_table(folder / "results/cka.parquet", table.assign(cka=table.cka + 0.001 * is_changed))
    assert script.main([str(folder), "--cells=1000", "--tasks=1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 1 above 0.0001")
    assert script.main([str(folder), "--cells=1000", "--tasks=1", "--tolerance=0.01"]) == 0


def test_another_base_and_an_adapter_of_another_task_are_found(script, with_torch, folder, tiny_tied, capsys):
    assert script.main([str(folder), "--cells=8", "--tasks=1", f"--base={tiny_tied.folder}"]) == 1
    tasks = list(script.mossa.Run(folder).data["tasks"])
    states = [folder / "adapters" / task / "adapter_model.safetensors" for task in tasks]
    weights = [path.read_bytes() for path in states]
    for path, others in zip(states, weights[1:] + weights[:1], strict=True):
        path.write_bytes(others)
    capsys.readouterr()
    assert script.main([str(folder), "--cells=1000", "--tasks=1"]) == 1
    assert not capsys.readouterr().out.splitlines()[-1].endswith("; 0 above 0.0001")


def test_what_cannot_be_checked_is_refused_in_one_line(script, with_torch, folder, tmp_path, capsys):
    def said(*flags):
        assert script.main([str(folder), *flags]) == 3
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        return line

    shutil.move(folder / "adapters/tuned", tmp_path / "tuned")
    assert "adapters/tuned is not there" in said("--cells=1000", "--tasks=1")
    rewrite(folder / "config.json", lambda record: record["compare"].update(pool="all"))
    assert "compares tokens (compare.pool=all)" in said()
    (folder / "report.html").unlink()
    assert "is not finished" in said()
    (folder / "config.json").unlink()
    assert "is no run folder" in said()
    for flag in ("--cells=0", "--tasks=0", "--seed=-1"):
        with pytest.raises(SystemExit) as end:
            script.main([str(folder), flag])
        assert end.value.code == 2 and f"{flag}: must be at least" in capsys.readouterr().err
