"""A run knows the base that its models were tuned on: another one in its place is refused, the same one is not."""

import copy
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mossa_jax.errors import Refusal
from mossa_jax.existing.runs import Run as FinishedRun
from mossa_jax.processes.stop import Stop
from mossa_jax.run import compare, pipeline
from mossa_jax.run.options import Options
from tests.support.run_folders import edit_about, part_of, rewrite

MODELS = ("tuned", "copy_first", "last_word", "count_words")


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A copy of a finished run, and of its base: (config, run folder, base)."""
    config = copy.deepcopy(tiny_run[0])
    folder = shutil.copytree(tiny_run[1], tmp_path / "run", ignore=shutil.ignore_patterns(".lock", ".holder"))
    base = shutil.copytree(config.base, tmp_path / "base")
    config.base = str(base)
    rewrite(folder / "config.json", lambda record: record.update(base=config.base))
    return config, folder, base


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def ask(config, folder, *stages, **options):
    run = pipeline.Run(config, pipeline.open_run(config, str(folder)), Stop(), options=Options(**options))
    try:
        for stage in stages or (pipeline.tune, compare.compare):
            stage(run)
        return run
    finally:
        run.folder.close()


def flip_bit(path, rng):
    """Flips a bit of a number of a safetensors file."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[int(rng.integers(start, len(data)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def exchange_layers(path):
    tensors = load_file(path)
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path, {"format": "pt"})


def test_weights_that_changed_are_refused_whatever_is_left_to_do(copied):
    config, folder, base = copied
    ask(config, folder)  # the base lies elsewhere, and is the same
    whole, path, rng = (base / "model.safetensors").read_bytes(), base / "model.safetensors", np.random.default_rng(0)
    for number in range(6):
        flip_bit(path, rng)
        if number == 3:
            part_of(folder, "cka", "copy_first").unlink()
        with pytest.raises(Refusal, match=r"weights of the base at .*base are not those that this run's") as caught:
            ask(config, folder, *((compare.compare,) if number % 2 else ()))
        assert caught.value.code == 3
        path.write_bytes(whole)
    exchange_layers(path)
    with pytest.raises(Refusal, match="weights of the base"):
        ask(config, folder)
    with pytest.raises(Refusal, match="weights of the base"):
        FinishedRun(folder).states("copy_first", ["a b c"])
    path.write_bytes(whole)
    ask(config, folder)
    assert FinishedRun(folder).states("copy_first", ["a b c"])


def change_config(base, **values):
    edit(base / "config.json", lambda record: record.update(values))


def change_tokenizer(base):
    text = (base / "tokenizer.json").read_text()
    vocab = json.loads(text)["model"]["vocab"]
    vocab[-1], vocab[-2] = vocab[-2], vocab[-1]
    edit(base / "tokenizer.json", lambda record: record["model"].update(vocab=vocab))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda base: change_config(base, rms_norm_eps=1e-3), r"config.json .*norm_eps was .*, now 0.001"),
        (lambda base: change_config(base, rope_theta=7e5, rope_parameters=None), r"config.json .*theta.* now 700000"),
        (lambda base: change_config(base, num_attention_heads=2, head_dim=16), r"config.json .*heads was"),
        (lambda base: change_config(base, bos_token_id=5), r"config.json.*bos was 1, now 5"),
        (lambda base: (base / "generation_config.json").write_text('{"eos_token_id": [5, 6]}'), r"generation_config"),
        (change_tokenizer, "the tokenizer of the base"),
    ],
)
def test_texts_that_changed_are_refused(copied, change, words):
    config, folder, base = copied
    change(base)
    with pytest.raises(Refusal, match=words) as caught:
        ask(config, folder)
    assert caught.value.code == 3 and "restore it, or start a new --workdir" in str(caught.value)


def test_the_same_base_in_other_words_and_other_files_is_taken(copied):
    config, folder, base = copied
    edit(base / "config.json", lambda record: record.update(transformers_version="99.0"))
    (base / "tokenizer_config.json").write_text((base / "tokenizer_config.json").read_text() + "\n\n")
    tensors, index = load_file(base / "model.safetensors"), {}
    for number, name in enumerate(sorted(tensors)):
        file = f"model-{number % 2 + 1:05}-of-00002.safetensors"
        index.setdefault(file, {})[name] = tensors[name]
    for file, part in index.items():
        save_file(part, base / file, {"format": "pt"})
    weight_map = {name: file for file, part in index.items() for name in part}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "model.safetensors").unlink()
    before = (folder / "results/cka.csv").read_bytes()
    part_of(folder, "cka", "copy_first").unlink()
    ask(config, folder)
    assert (folder / "results/cka.csv").read_bytes() == before


def test_a_model_of_other_weights_is_not_put_over_this_base(copied):
    config, folder, _ = copied
    edit_about(folder / "adapters/copy_first", lambda about: about.update(weights="0123456789abcdef"))
    part_of(folder, "cka", "copy_first").unlink()
    with pytest.raises(Refusal, match=r"are not those that 'copy_first' of this run was tuned on"):
        ask(config, folder, compare.compare)


def test_models_are_taken_over_to_a_base_that_moved_and_from_no_other(copied, tmp_path):
    config, folder, base = copied
    config.base = str(shutil.copytree(base, tmp_path / "moved"))
    ask(config, tmp_path / "same", pipeline.tune, take_from=str(folder))
    taken = json.loads((tmp_path / "same/takeover.json").read_text())
    assert set(MODELS) <= set(taken["models"]) and taken["anew"] == {}
    # Asked again, it is a run like any other.
    before = {path: path.read_bytes() for path in (tmp_path / "same/adapters").rglob("*.safetensors")}
    ask(config, tmp_path / "same")
    assert before == {path: path.read_bytes() for path in (tmp_path / "same/adapters").rglob("*.safetensors")}
    exchange_layers(tmp_path / "moved/model.safetensors")
    other = ask(config, tmp_path / "other", pipeline.tune, take_from=str(folder))
    assert other.options.take_from == "" and not (tmp_path / "other/takeover.json").exists()


def test_a_run_of_an_earlier_version_goes_on(copied):
    config, folder, _ = copied
    rewrite(folder / "data.json", lambda record: record.pop("fingerprints"))
    for name in (folder / "adapters").iterdir():
        about = json.loads((name / "mossa.json").read_text())
        for key in ("files", "seal", "weights"):
            del about[key]
        (name / "mossa.json").write_text(json.dumps(about))
    config.base = json.loads((folder / "data.json").read_text())["base"]["base"]
    rewrite(folder / "config.json", lambda record: record.update(base=config.base))
    before = (folder / "results/cka.csv").read_bytes()
    part_of(folder, "cka", "copy_first").unlink()
    ask(config, folder)
    assert (folder / "results/cka.csv").read_bytes() == before
    assert json.loads((folder / "data.json").read_text())["fingerprints"]["weights"]
