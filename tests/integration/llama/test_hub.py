"""Hub ids against a server that answers as the hub does.

huggingface_hub runs in processes of its own, which learn of the server and of their cache from the environment alone.
"""

import json
import os
import types

import pytest

from mossa_jax.errors import BAD_INPUT, NO_ACCESS, Refusal
from mossa_jax.llama.files.locate import locate
from tests.support.hub_server import BAD_TOKEN, GOOD_TOKEN, NARROW_TOKEN, HubServer, Process, commit_of

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}
SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b'{"eos_token_id": 2}',
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"bos_token": "<s>"}',
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
}
OTHERS = {
    "README.md": b"# words",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same again",
    "original/consolidated.00.pth": b"and again",
    "onnx/model.safetensors": b"and again",
    "onnx/tokenizer.json": b"{}",
}
SHARDED = {
    **SMALL, **OTHERS,
    SHARDS[0]: b"first", SHARDS[1]: b"second", "model-00003-of-00003.safetensors": b"not in the index",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
}  # fmt: skip
SINGLE = {**SMALL, **OTHERS, "model.safetensors": b"all", "model.fp16.safetensors": b"all, shorter"}
UNNAMED = {**SMALL, **OTHERS, "weights-1.safetensors": b"one", "weights-2.safetensors": b"two"}
PICKLED = {**SMALL, "pytorch_model.bin": b"pickle", "consolidated.safetensors": b"other names"}

# Hub id -> revision -> files.
REPOSITORIES = {
    "open/sharded": {"main": SHARDED},
    "open/single": {"main": SINGLE, "v2": {**SINGLE, "model.safetensors": b"another"}},
    "open/unnamed": {"main": UNNAMED},
    "open/config": {"main": SHARDED},
    "open/texts": {"main": SHARDED},
    "open/pickled": {"main": PICKLED},
    "open/bare": {"main": {"model.safetensors": b"all"}},
    "open/torn": {"main": {name: data for name, data in SHARDED.items() if name != SHARDS[1]}},
    "meta-llama/Llama-2-7b-hf": {"main": SHARDED},
    "gated/unknown": {"main": SHARDED},
    "gated/narrow": {"main": SHARDED},
    "gated/granted": {"main": SHARDED},
}
GATED = [name for name in REPOSITORIES if not name.startswith("open/")]


# Calls `locate` on each case of a line of JSON, and prints the outcomes as one line.
SCRIPT = """
import json, logging, os, sys
from mossa_jax.llama.files.locate import locate
from mossa_jax.errors import Refusal

warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("mossa_jax").addHandler(handler)
for line in sys.stdin:
    answers = {}
    for key, case in json.loads(line).items():
        os.environ["HF_TOKEN"] = case.pop("token", "")
        warnings.clear()
        try:
            answers[key] = {"folder": str(locate(**case))}
        except Refusal as refusal:
            answers[key] = {"code": refusal.code, "message": str(refusal)}
        answers[key]["warnings"] = list(warnings)
    print(json.dumps(answers), flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Answers with the hub up, then down, then offline, all with one cache; and the requests that the hub saw."""
    home, cache = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("cache")
    server = HubServer(models=REPOSITORIES, gated=GATED, broken=["open/broken"])
    online = Process(SCRIPT, home, server.endpoint, HF_HUB_CACHE=str(cache))
    offline = Process(SCRIPT, home, server.endpoint, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1")
    server.start()
    cached = {
        "sharded": {"name": "open/sharded"},
        "single": {"name": "open/single", "revision": "v2"},
        "other revision": {"name": "open/single"},
        "config": {"name": "open/config", "config_only": True},
        "half": {"name": "open/config"},
        "texts": {"name": "open/texts", "text_only": True},
        "torn": {"name": "open/torn"},
        "unknown": {"name": "open/never"},
    }
    try:
        up = online.ask({
            "sharded": {"name": "open/sharded"},
            "single": {"name": "open/single", "revision": "v2"},
            "unnamed": {"name": "open/unnamed"},
            "config": {"name": "open/config", "config_only": True},
            "texts": {"name": "open/texts", "text_only": True},
            "granted": {"name": "gated/granted", "token": GOOD_TOKEN},
            "granted once": {"name": "gated/granted"},
            "pickled": {"name": "open/pickled"},
            "pickled config": {"name": "open/pickled", "config_only": True},
            "bare": {"name": "open/bare"},
            "torn": {"name": "open/torn"},
            "revision": {"name": "open/single", "revision": "v3"},
            "missing": {"name": "nobody/nothing"},
            "known gated": {"name": "meta-llama/Llama-2-7b-hf"},
            "gated": {"name": "gated/unknown"},
            "gated, token refused": {"name": "gated/unknown", "token": "hf_stranger"},
            "gated, config": {"name": "gated/unknown", "config_only": True},
            "gated, token too narrow": {"name": "gated/narrow", "token": NARROW_TOKEN},
            "bad token": {"name": "open/bare", "token": BAD_TOKEN},
            "no id": {"name": "org/na me"},
            "broken": {"name": "open/broken"},
        })  # fmt: skip
        seen = list(server.seen)
        server.stop()
        answers = {"up": up, "down": online.ask(cached), "offline": offline.ask(cached)}
    finally:
        online.close()
        offline.close()
    return types.SimpleNamespace(endpoint=server.endpoint, cache=cache, seen=seen, **answers)


def fetched(hub, name: str) -> set[str]:
    """The files of a repository whose content was asked for."""
    return {asked.file for asked in hub.seen if asked.name == name and asked.file and asked.method == "GET"}


def content(folder: str) -> dict[str, bytes]:
    """The bytes of the files in a folder, by relative path."""
    return {
        os.path.relpath(os.path.join(place, file), folder): open(os.path.join(place, file), "rb").read()
        for place, _, files in os.walk(folder)
        for file in files
    }


@pytest.mark.parametrize(
    ("case", "name", "revision", "files", "weights"),
    [
        ("sharded", "open/sharded", "main", SHARDED, {*SHARDS, "model.safetensors.index.json"}),
        ("single", "open/single", "v2", REPOSITORIES["open/single"]["v2"], {"model.safetensors"}),
        ("unnamed", "open/unnamed", "main", UNNAMED, {"weights-1.safetensors", "weights-2.safetensors"}),
    ],
)
def test_only_what_a_model_needs_is_downloaded(hub, case, name, revision, files, weights):
    answer = hub.up[case]
    assert content(answer.folder) == {file: files[file] for file in {*SMALL, *weights}}
    assert fetched(hub, name) == {*SMALL, *weights}
    assert {asked.revision for asked in hub.seen if asked.name == name and asked.file} == {commit_of(name, revision)}
    assert answer.warnings == []


def test_config_only_downloads_no_more_than_that(hub):
    assert content(hub.up["config"].folder).keys() == {"config.json", "generation_config.json"}
    assert fetched(hub, "open/config") == {"config.json", "generation_config.json"}


def test_text_only_downloads_no_weights(hub):
    assert content(hub.up["texts"].folder).keys() == {*SMALL, "model.safetensors.index.json"}
    assert not any(file.endswith(".safetensors") for file in fetched(hub, "open/texts"))


def test_a_token_with_access_opens_a_gated_model(hub):
    assert content(hub.up["granted"].folder)[SHARDS[1]] == b"second"
    assert hub.up["granted"].warnings == []


def test_a_gated_model_in_the_cache_is_used_with_a_warning(hub):
    assert hub.up["granted once"].folder == hub.up["granted"].folder
    assert len(hub.up["granted once"].warnings) == 1
    assert "gated/granted" in hub.up["granted once"].warnings[0]


@pytest.mark.parametrize(
    ("case", "name", "parts"),
    [
        ("known gated", "meta-llama/Llama-2-7b-hf", ("is gated", "no token is set", "NousResearch/Llama-2-7b-hf")),
        ("gated", "gated/unknown", ("is gated", "no token is set", "HuggingFaceTB/SmolLM2-135M")),
        ("gated, config", "gated/unknown", ("is gated",)),
        ("gated, token refused", "gated/unknown", ("is gated", "Access to gated/unknown is restricted")),
        ("gated, token too narrow", "gated/narrow", ("Please enable access to public gated repositories",)),
        ("missing", "nobody/nothing", ("does not exist or is private", "HuggingFaceTB/SmolLM2-135M")),
        ("bad token", "open/bare", ("Invalid credentials",)),
    ],
)
def test_access_is_denied_before_anything_is_downloaded(hub, case, name, parts):
    answer = hub.up[case]
    assert answer.code == NO_ACCESS
    for part in (*parts, f"{hub.endpoint}/{name}", "HF_TOKEN", "local folder"):
        assert part in answer.message
    assert fetched(hub, name) == set()
    assert {asked.file for asked in hub.seen if asked.name == name} <= {None, "config.json"}


@pytest.mark.parametrize(
    ("case", "name", "parts"),
    [
        ("pickled", "open/pickled", ("pytorch_model.bin", "save_pretrained")),
        ("pickled config", "open/pickled", ("pytorch_model.bin",)),
        ("bare", "open/bare", ("config.json",)),
        ("revision", "open/single", ("'v3'",)),
        ("torn", "open/torn", (SHARDS[1],)),
        ("no id", "org/na me", ("nor a hub id",)),
        ("broken", "open/broken", ("503", "local folder")),
    ],
)
def test_unusable_repositories_are_refused_before_their_weights(hub, case, name, parts):
    answer = hub.up[case]
    assert answer.code == BAD_INPUT
    assert all(part in answer.message for part in (*parts, name))
    if name != "open/single":  # another revision of it was downloaded
        assert not any(file.endswith((".bin", ".safetensors")) for file in fetched(hub, name))


@pytest.mark.parametrize("case", ["sharded", "single", "config", "texts"])
def test_the_cache_stands_in_for_the_hub(hub, case):
    assert hub.offline[case].folder == hub.down[case].folder == hub.up[case].folder
    assert hub.offline[case].warnings == []
    assert len(hub.down[case].warnings) == 1
    assert "Connection refused" in hub.down[case].warnings[0]


@pytest.mark.parametrize("case", ["half", "torn", "other revision", "unknown"])
def test_an_incomplete_cache_does_not_stand_in_for_the_hub(hub, case):
    down, offline = hub.down[case], hub.offline[case]
    assert down.code == offline.code == BAD_INPUT
    assert all(
        part in down.message for part in (hub.endpoint, "Connection refused", "HF_HUB_OFFLINE=1", "local folder")
    )
    assert all(part in offline.message for part in (str(hub.cache), "HF_HUB_OFFLINE", "local folder"))


def test_a_folder_is_used_as_it_is(tmp_path, monkeypatch):
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(locate("org/name", "any revision")) == "org/name"
    assert str(locate("~/org/name")) == str(tmp_path / "org/name")


@pytest.mark.parametrize("name", ["/none/such", "./none", "~/none", "none", "a/b/c"])
def test_a_path_that_leads_nowhere_is_refused(name):
    with pytest.raises(Refusal, match=f"'{os.path.expanduser(name)}' does not exist.*org/name") as caught:
        locate(name)
    assert caught.value.code == BAD_INPUT


def test_a_file_is_refused_as_a_model_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(Refusal, match="is a file"):
        locate(str(tmp_path / "model.safetensors"))
