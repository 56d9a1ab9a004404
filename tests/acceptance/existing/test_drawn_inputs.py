"""Drawn inputs: whatever a configuration, a model, an adapter, tasks, prompts or states hold, it is read or refused.

Two thousand folders and files are drawn, each a good one with a value from the edge or with damage. A refusal has one
line; anything else that is raised is a fault, and so is anything that takes long.
"""

import json
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest

from mossa_jax.config import check, load_config
from mossa_jax.config.data import config_to_data
from mossa_jax.config.fields import Columns, Config, Tasks
from mossa_jax.errors import Refusal
from mossa_jax.existing.folders import compare_saved
from mossa_jax.existing.prompt_files import read_prompt_files
from mossa_jax.existing.saved import load_states, save_states
from mossa_jax.llama.architecture import read_architecture
from mossa_jax.llama.files.load import load_model
from mossa_jax.llama.files.peft import load_adapter, save_adapter
from mossa_jax.tasks import load_suite
from mossa_jax.tasks.row_files import read_examples
from tests.support import tiny_llama
from tests.support.mutations import as_json, damage, fresh_copy, mutate_json, mutate_value

pytestmark = pytest.mark.slow

SECONDS = 20
TEXTS = ["the big red mill", "a river and seven old boats", "near the hills"]


class _TooLong(Exception):
    pass


def _stop(*_):
    raise _TooLong


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good folder or file of every kind."""
    root = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    tiny_llama.write_model(root / "model")
    arch = read_architecture(root / "model")
    a, b = rng.normal(size=(arch.layers, arch.hidden, 4)), rng.normal(size=(arch.layers, 4, arch.hidden))
    update = {"a": a.astype(np.float32), "b": b.astype(np.float32), "scale": np.full(arch.layers, 2.0, np.float32)}
    save_adapter(root / "adapter", {"q_proj": update}, "base", {"model": "alpha", "template": None})
    for split in ("train", "test"):
        (root / "tasks" / split).mkdir(parents=True)
        for task in ("alpha", "beta"):
            rows = [
                {"inputs": f"{text} {n}", "targets": str(n), "template": n, "item": n} for n, text in enumerate(TEXTS)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (root / "tasks" / split / f"{task}.jsonl").write_text(text)
    (root / "tasks/tasks.json").write_text(json.dumps({"alpha": {"cluster": "one", "held_out": True}, "beta": {}}))
    (root / "prompts").mkdir()
    (root / "prompts/p.jsonl").write_text("".join(json.dumps({"inputs": text, "item": 1}) + "\n" for text in TEXTS))
    states = {name: rng.normal(size=(8, 5)).astype(np.float32) for name in ("embed", "1", "final_norm")}
    save_states(root / "states", states)
    (root / "arrays").mkdir()
    for name, array in states.items():
        np.save(root / f"arrays/{name}.npy", array)
    (root / "arrays/ids.json").write_text(json.dumps([f"id{n}" for n in range(8)]))
    (root / "config").mkdir()
    (root / "config/c.json").write_text(json.dumps(config_to_data(Config())))
    return root


def _change(folder, rng):
    """Changes one file of a folder, mostly a JSON file by a value."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    if path.suffix == ".json" and rng.random() < 0.7:
        return mutate_json(path, rng, rng.choice([1, 1, 2, 4]))
    if path.suffix == ".jsonl" and rng.random() < 0.6:
        lines = path.read_text().splitlines()
        lines[rng.randrange(len(lines))] = as_json(mutate_value(json.loads(lines[0]), rng))
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        return f"{path.name}: a line changed"
    return damage(path, rng)


def _use_config(folder, _):
    config = load_config(folder / "c.json")
    check(config)


def _use_model(folder, rng):
    model = load_model(str(folder))
    tokenizer = model.tokenizer(rng.choice(["none", "llama2"]))
    tokenizer.prompts(TEXTS)
    tokenizer.text(tokenizer.answers(TEXTS)[0])


def _use_adapter(folder, _):
    load_adapter(folder, _use_adapter.arch)


def _use_tasks(folder, rng):
    suite = load_suite(Tasks(suite="folder", folder=str(folder), allow_bad_rows=rng.random() < 0.3))
    for task in suite.tasks:
        for split in ("train", "validation", "test"):
            task.fingerprint(split)
            list(task.rows(split))


def _use_prompts(folder, _):
    read_prompt_files([str(folder / "p.jsonl")])
    list(read_examples(folder / "p.jsonl", Columns(targets="inputs")))


def _use_states(folder, _):
    load_states(folder)


def _use_arrays(folder, _):
    compare_saved(str(folder), str(folder.parent / "good"))


KINDS = {
    "config": (_use_config, 600),
    "model": (_use_model, 500),
    "adapter": (_use_adapter, 300),
    "tasks": (_use_tasks, 300),
    "prompts": (_use_prompts, 100),
    "states": (_use_states, 100),
    "arrays": (_use_arrays, 100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_inputs_are_read_or_refused_in_one_line(kind, good, tmp_path):
    use, count = KINDS[kind]
    _use_adapter.arch = read_architecture(good / "model")
    fresh_copy(good / kind, tmp_path / "good")
    outcomes, faults, slowest = Counter(), [], 0.0
    before = signal.signal(signal.SIGALRM, _stop)
    try:
        for number in range(count):
            rng = random.Random(f"{kind}{number}")
            folder = fresh_copy(good / kind, tmp_path / "drawn")
            what = _change(folder, rng)
            began = time.monotonic()
            signal.alarm(SECONDS)
            try:
                use(folder, rng)
                outcomes["read"] += 1
            except Refusal as refusal:
                outcomes[f"refused with {refusal.code}"] += 1
                if refusal.code not in (2, 3, 5) or len(str(refusal)) > 2_000:
                    faults.append(f"{number}: {what}: code {refusal.code}: {str(refusal)[:200]}")
            except BaseException as error:
                faults.append(f"{number}: {what}: {type(error).__name__}: {str(error)[:200]}")
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - began)
    finally:
        signal.signal(signal.SIGALRM, before)
    print(f"\n{kind}: {count} drawn, {dict(outcomes)}, {len(faults)} faults, slowest {slowest:.1f} s")
    assert not faults, "\n".join(faults)
