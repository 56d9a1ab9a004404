"""Models that a run exported are trusted only as they were written; a lost one is made again, the same to the bit."""

import copy
import json
import shutil

import numpy as np
import pytest

from mossa_jax.errors import Refusal
from mossa_jax.existing.runs import Run as FinishedRun
from mossa_jax.processes.stop import Stop
from mossa_jax.run import compare, pipeline, tune
from tests.support.run_folders import part_of
from tests.support.tiny_llama import import_torch


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A copy of a finished run: (config, run folder)."""
    folder = shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    return copy.deepcopy(tiny_run[0]), folder


def ask(config, folder, *stages):
    run = pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop())
    try:
        for stage in stages or (pipeline.tune, compare.compare):
            stage(run)
    finally:
        run.folder.close()


def flip_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


DAMAGE = {
    "flipped": lambda path: flip_bit(path, np.random.default_rng(len(path.name))),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"}"),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "flipped" else pytest.mark.slow) for kind in DAMAGE]
)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "mossa.json"])
def test_a_damaged_adapter_is_refused_with_the_way_out_and_made_again(copied, name, kind):
    config, folder = copied
    adapter = folder / "adapters/copy_first"
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    table = (folder / "results/cka.csv").read_bytes()
    DAMAGE[kind](adapter / name)
    part_of(folder, "cka", "copy_first").unlink()
    with pytest.raises(Refusal, match=f"{name} .*; delete {adapter}, and the command") as caught:
        ask(config, folder, compare.compare)
    assert caught.value.code == 3
    with pytest.raises(Refusal, match=f"{name} .*; delete {adapter}"):
        FinishedRun(folder).states("copy_first", ["a b c"])
    if kind == "flipped" and name == "mossa.json":
        shutil.rmtree(adapter)
        ask(config, folder)
        assert (adapter / "adapter_model.safetensors").read_bytes() == whole
        assert (folder / "results/cka.csv").read_bytes() == table


def test_adapters_in_the_place_of_others_are_refused(copied):
    config, folder = copied
    for first, second in (("copy_first", "count_words"), ("tuned", "last_word")):
        one, two = (folder / f"adapters/{name}" for name in (first, second))
        for source, target in ((one, folder / "aside"), (two, one), (folder / "aside", two)):
            source.rename(target)
        with pytest.raises(Refusal, match=r"adapters/\S+ holds the model '\S+' and not '\S+'; delete") as caught:
            ask(config, folder)
        assert caught.value.code == 3
        for source, target in ((one, folder / "aside"), (two, one), (folder / "aside", two)):
            source.rename(target)
    ask(config, folder)


def test_peft_reads_an_adapter_with_digests_beside_it(copied, tiny):
    torch = import_torch()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, folder = copied
    assert json.loads((folder / "adapters/copy_first/mossa.json").read_text())["files"]
    base = AutoModelForCausalLM.from_pretrained(str(tiny.folder))
    with torch.no_grad():
        before = base(torch.tensor([[1, 5, 7]])).logits.clone()
        after = PeftModel.from_pretrained(base, str(folder / "adapters/copy_first"))(torch.tensor([[1, 5, 7]])).logits
    assert (before - after).abs().max() > 0


def test_adapters_that_are_lost_are_made_again_the_same_to_the_bit(copied, tmp_path):
    config, _ = copied
    config.tuning.reproducible, config.tuning.snapshots = True, 1
    folder = tmp_path / "exact"
    ask(config, folder, pipeline.tune)
    paths = sorted(folder.glob("adapters/*/adapter_model.safetensors"))
    before = {path: path.read_bytes() for path in [*paths, *folder.glob("snapshots/*/*/adapter_model.safetensors")]}
    curve = sorted(line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"model"' in line)
    for path in (path for path in paths if path.parent.name in ("tuned", "copy_first")):
        shutil.rmtree(path.parent)
        ask(config, folder, pipeline.tune)
        assert {path: path.read_bytes() for path in before} == before, path.parent.name
    again = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert sorted(set(again)) == curve
    assert not any((folder / "checkpoints").iterdir())


def test_what_a_kill_left_of_checkpoints_goes_once_their_models_are_exported(copied):
    config, folder = copied
    for label in ("E", "controls"):
        for name in ("12.orbax-checkpoint-tmp-7", "11"):
            (folder / f"checkpoints/{label}/{name}").mkdir(parents=True)
            (folder / f"checkpoints/{label}/{name}/file").write_text("left")
    tune.remove_checkpoints(pipeline.Run(config, pipeline.RunFolder(folder), Stop()))
    assert not any((folder / "checkpoints").iterdir())
