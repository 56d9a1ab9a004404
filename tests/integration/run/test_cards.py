"""The cards of a run's models: written at export, completed once there are scores, and harmless to other readers."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.about import read_about
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.processes.stop import Stop
from mossa_jax.run import pipeline
from mossa_jax.run.cards import add_scores


def test_every_model_has_a_card_with_its_scores(tiny_run):
    config, folder = tiny_run
    scores = pd.read_parquet(folder / "results/scores.parquet").set_index(["task", "model", "metric"])
    cards = {path.parent.name: ModelCard.load(path) for path in sorted(folder.glob("adapters/*/README.md"))}
    assert cards.keys() == {path.name for path in (folder / "adapters").iterdir()}
    for name, card in cards.items():
        assert card.data.base_model == config.base and card.data.library_name == "peft", name
        tasks = read_about(folder / "adapters" / name)["tasks"]
        for task in tasks:
            label = "tuned" if name == "tuned" else "control" + name.removeprefix(task)
            own, base = (scores.value[task, model, "exact_match"] for model in (label, "base"))
            (line,) = [line for line in card.content.splitlines() if line.startswith(f"| `{task}` | 8 |")]
            cells = line.split("|")
            assert cells[3].startswith(f" {own:.2f} [") and cells[4].startswith(f" {base:.2f} ["), name
    assert "experimental model E" in cards["tuned"].content and "mixture of 3 tasks" in cards["tuned"].content
    assert "**Not for use**" in cards["last_word.twin"].content
    assert "second specialist of the task `last_word`" in cards["last_word.seed1"].content


def test_scores_come_into_a_card_without_touching_the_weights(tiny_run, tmp_path):
    config, finished = tiny_run
    folder = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    adapter = folder / "adapters/last_word"
    wanted = (adapter / "README.md").read_text()
    others = [path for path in adapter.iterdir() if path.name != "README.md"]
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in others}
    (adapter / "README.md").unlink()  # as in a folder of an older version
    untouched = (folder / "adapters/count_words/README.md").stat().st_mtime_ns
    run_folder = pipeline.open_run(config, str(folder))
    try:
        add_scores(pipeline.Run(config, run_folder, Stop()), pd.read_parquet(folder / "results/scores.parquet"))
    finally:
        run_folder.close()
    assert (adapter / "README.md").read_text() == wanted
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in others} == before
    assert (folder / "adapters/count_words/README.md").stat().st_mtime_ns == untouched
    assert sorted(path.name for path in adapter.iterdir()) == sorted([*before, "README.md"])


def test_peft_loads_a_folder_with_a_card(tiny_run, tiny):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder = tiny_run[1] / "adapters/last_word"
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder)
    model = peft.PeftModel.from_pretrained(base, str(folder))
    (name,) = [name for name in model.state_dict() if name.endswith("layers.2.self_attn.q_proj.lora_A.default.weight")]
    ours = load_adapter(folder, read_architecture(tiny.folder))["q_proj"]["a"][2].T
    assert np.array_equal(model.state_dict()[name].numpy(), ours)


def test_the_record_says_where_the_rows_come_from(tiny_run):
    about = json.loads((tiny_run[1] / "adapters/last_word/mossa.json").read_text())
    assert about["sources"]["last_word"]["cluster"] == "words" and about["sources"]["last_word"]["licence"] == ""
    assert about["versions"].keys() == {"mossa_jax", "jax", "transformers"}
