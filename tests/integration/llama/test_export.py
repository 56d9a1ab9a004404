"""Models with their adapter merged, against peft's own models with the adapter unmerged."""

import json
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.llama.architecture import read_config
from mossa_jax.llama.files.peft import load_adapter
from mossa_jax.llama.files.weights import save_weights
from tests.integration.launch.test_commands import HARNESS, environment
from tests.support.tiny_llama import (
    FAMILIES,
    distance,
    random_prompts,
    torch_model,
    torch_states,
    write_adapter,
    write_family,
)

PROMPTS = random_prompts(3)
# Blocks without an update, two ranks, scaling by the root of the rank, some targets.
ADAPTERS = {
    "llama2_grouped": {"layers": [0, 2], "rank_pattern": {"q_proj": 2}},
    "qwen2": {"use_rslora": True},
    "qwen3": {"targets": ("k_proj", "o_proj", "down_proj")},
}


def tensors(folder):
    files = sorted(folder.glob("*.safetensors"))
    actual = [item for file in files for item in load_file(file).items()]
    assert len(actual) == len(dict(actual))
    return dict(actual)


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


def worst(folder, carrier):
    """The largest distance between the logits of the model in a folder and those of a torch model."""
    actual, expected = (torch_states(model, PROMPTS) for model in (torch_model(folder), carrier))
    return max(distance(a["logits"], b["logits"]) for a, b in zip(actual, expected, strict=True))


@pytest.fixture(scope="module", params=ADAPTERS)
def merged(request, tmp_path_factory):
    """(the base, its folder with the adapter merged in, peft's model)."""
    here = tmp_path_factory.mktemp("merged")
    tiny = write_family(here / "base", request.param)
    carrier = write_adapter(tiny.folder, here / "adapter", seed=1, **ADAPTERS[request.param])
    mossa.export_merged(str(tiny.folder), str(here / "adapter"), str(here / "new" / "out"))
    return tiny, here / "new" / "out", carrier


def test_a_merged_model_equals_peft_with_the_adapter_beside_it(merged):
    tiny, out, carrier = merged
    assert worst(out, carrier) < 1e-5
    assert worst(tiny.folder, carrier) > 0.1  # the adapter matters
    assert not list(out.parent.glob(".*"))


def test_a_merged_folder_is_a_model_like_its_base(merged):
    tiny, out, _ = merged
    actual, expected = read_config(out), read_config(tiny.folder)
    assert actual.pop("torch_dtype") == expected.pop("dtype") == "float32" and actual == expected
    copied = {path.name for path in tiny.folder.iterdir()}
    assert {path.name for path in out.iterdir()} == copied
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} < copied
    for name in copied - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (tiny.folder / name).read_bytes()
    base, again = mossa.load_model(str(tiny.folder)), mossa.load_model(str(out))
    assert again.architecture == base.architecture
    assert again.tokenizer().prompts(["the mill"]) == base.tokenizer().prompts(["the mill"])


def test_a_merged_model_has_the_states_of_its_adapter(tiny, tiny_adapters, tmp_path):
    """A loaded model is used as it is, and the merged folder can be loaded here, too."""
    model, texts = mossa.load_model(str(tiny.folder)), ["the red mill", "seven boats"]
    for number, (adapter, _) in enumerate(tiny_adapters):
        mossa.export_merged(model, str(adapter), str(tmp_path / str(number)))
        expected = mossa.layer_states(model, texts, adapter=str(adapter))
        actual = mossa.layer_states(mossa.load_model(str(tmp_path / str(number))), texts)
        assert max(distance(actual[name], expected[name]) for name in expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_without_an_adapter_every_tensor_comes_out_as_it_went_in(name, tmp_path):
    tiny = write_family(tmp_path / "base", name)
    mossa.export_merged(str(tiny.folder), None, str(tmp_path / "out"))
    assert same(tensors(tmp_path / "out"), tensors(tiny.folder))


def test_several_files_load_in_transformers(tiny, tiny_adapters, tmp_path):
    model, (adapter, carrier) = mossa.load_model(str(tiny.folder)), tiny_adapters[0]
    parts, config = load_adapter(adapter, model.architecture), read_config(tiny.folder)
    save_weights(tmp_path / "out", model.architecture, model.state, config, tiny.folder, parts, shard_bytes=60_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values())
    # A tensor that is larger by itself has a file of its own.
    assert all(len(held) == 1 or sum(t.nbytes for t in held.values()) <= 60_000 for held in map(load_file, files))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(tmp_path / "out").values())
    assert worst(tmp_path / "out", carrier) < 1e-5
    # Several files in, one file out, and the base as it was: nothing was merged in place.
    tiny.torch_model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    mossa.export_merged(str(tmp_path / "many"), None, str(tmp_path / "one"))
    mossa.export_merged(model, None, str(tmp_path / "loaded"))
    assert same(tensors(tmp_path / "one"), tensors(tiny.folder)) and same(
        tensors(tmp_path / "loaded"), tensors(tiny.folder)
    )
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert not (tmp_path / "one/model.safetensors.index.json").exists()


def test_bfloat16_stays_bfloat16_and_is_rounded_once(tiny, tiny_adapters, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch_model(tiny.folder).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for adapter, out in ((None, "alone"), (str(tiny_adapters[0][0]), "merged")):
        mossa.export_merged(str(tmp_path / "half"), adapter, str(tmp_path / out), dtype="bfloat16")
    half, merged = tensors(tmp_path / "half"), tensors(tmp_path / "merged")
    assert same(tensors(tmp_path / "alone"), half)
    assert {tensor.dtype for tensor in merged.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert read_config(tmp_path / "merged")["torch_dtype"] == "bfloat16"
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16
    updates = 0
    for path, layer in tiny_adapters[0][1].named_modules():
        if hasattr(layer, "get_delta_weight"):
            name = path.removeprefix("base_model.model.") + ".weight"
            whole = torch.tensor(half.pop(name).astype(np.float32)) + layer.get_delta_weight("default")
            expected = whole.detach().to(torch.bfloat16).float().numpy()
            # Single last bits may differ; arithmetic in bfloat16 would be at 2e-3.
            assert distance(merged.pop(name).astype(np.float32), expected) < 1e-4
            updates += 1
    assert updates == 21 and same(merged, half)  # what has no update is untouched


@pytest.fixture(scope="module")
def results(root, tiny, tiny_adapters, tmp_path_factory):
    """(where, name -> (exit code, standard error)) of every command below."""
    here = tmp_path_factory.mktemp("exports")
    adapter = tiny_adapters[0][0]
    (here / "full").mkdir()
    (here / "full/notes.txt").write_text("mine")
    (here / "empty").mkdir()
    infinite = shutil.copytree(adapter, here / "infinite")
    parts = load_file(infinite / "adapter_model.safetensors")
    next(iter(parts.values()))[0, 0] = np.inf
    save_file(parts, infinite / "adapter_model.safetensors", metadata={"format": "pt"})
    wide = write_family(here / "wide", "llama2", hidden_size=64).folder

    def export(**changes):
        given = {"base": tiny.folder, "adapter": adapter, "out": here / "out"} | changes
        return ["launch.export", *[f"--{name}={value}" for name, value in given.items() if value is not None]]

    commands = {
        "done": export(out=here / "new/done"),
        "into an empty folder": export(out=here / "empty", dtype="bfloat16"),
        "full": export(out=here / "full"),
        "the base itself": export(out=tiny.folder),
        "below a file": export(out=here / "full/notes.txt/out"),
        "a file": export(out=here / "full/notes.txt"),
        "no adapter": export(adapter=None),
        "no out": export(out=None),
        "dtype": export(dtype="int8"),
        "adapter is none": export(adapter=here / "full"),
        "adapter does not fit": export(base=wide),
        "infinite": export(adapter=infinite),
        "missing model": export(base=here / "nowhere"),
        "base is an adapter": export(base=adapter),
    }
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps(list(commands.values())), str(here)],
        cwd=root, env=environment(root), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    errors = [(here / f"{number}.2").read_text() for number in range(len(commands))]
    return here, dict(zip(commands, zip(map(int, done.stdout.split()), errors, strict=True), strict=True))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("full", 2, ["full", "not empty", "new folder"]),
        ("the base itself", 2, ["not empty"]),
        ("below a file", 2, ["notes.txt is a file"]),
        ("a file", 2, ["notes.txt is a file"]),
        ("no adapter", 2, ["--adapter"]),
        ("no out", 2, ["--out"]),
        ("dtype", 2, ["dtype", "bfloat16"]),
        ("adapter is none", 3, ["full", "adapter_config.json"]),
        ("adapter does not fit", 3, ["q_proj", "shape"]),
        ("infinite", 5, ["infinite", "infinity"]),
        ("missing model", 3, ["nowhere", "does not exist"]),
        ("base is an adapter", 3, ["config.json"]),
    ],
)
def test_a_refusal_is_one_line_and_one_code(results, name, code, words):
    actual, error = results[1][name]
    lines = error.splitlines()
    assert actual == code, error
    assert len(lines) == 1 and lines[0].startswith("error: "), error
    assert all(word in lines[0] for word in words), lines[0]


def test_the_command_writes_the_model_and_refusals_write_nothing(results, tiny, tiny_adapters):
    here, codes = results
    assert [codes[name][0] for name in ("done", "into an empty folder")] == [0, 0]
    assert worst(here / "new/done", tiny_adapters[0][1]) < 1e-5
    assert read_config(here / "empty")["torch_dtype"] == "bfloat16"
    assert not (here / "out").exists()
    assert (here / "full/notes.txt").read_text() == "mine" and len(list((here / "full").iterdir())) == 1
    assert (tiny.folder / "model.safetensors").exists()


def test_a_refusal_comes_before_any_weights_are_read(tiny, tmp_path):
    """A large model would take minutes to load before it was refused."""
    headless = shutil.copytree(tiny.folder, tmp_path / "headless")
    (headless / "model.safetensors").write_bytes(b"")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(Refusal, match="is a file"):
        mossa.export_merged(str(headless), None, str(tmp_path / "out"))
    with pytest.raises(Refusal, match=r"no adapter_config\.json"):
        mossa.export_merged(str(headless), str(tmp_path), str(tmp_path / "new"))
