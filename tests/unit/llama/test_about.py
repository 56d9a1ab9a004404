"""The record beside an exported model: damage and exchanged folders are known when they are read back."""

import json
import shutil

import pytest

from mossa_jax.errors import Refusal
from mossa_jax.llama.files.about import check_files, check_owner, is_checkable, read_about, write_about


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    (folder / "README.md").write_text("a card")
    write_about(folder, {"model": "sums", "steps": 3, "squares": [0.1, 1e-300], "rows": {"10": 1, "9": 2}})
    return folder


def is_noticed(folder):
    try:
        check_files(folder, read_about(folder))
    except Refusal as refusal:
        assert refusal.code == 3 and f"delete {folder}" in str(refusal)
        return True
    return False


def test_the_record_comes_back_and_the_card_may_change(folder):
    about = read_about(folder)
    assert about["model"] == "sums" and about["squares"] == [0.1, 1e-300] and is_checkable(about)
    assert set(about["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    (folder / "README.md").write_text("a card with scores")
    assert not is_noticed(folder)
    # What is read can be written again.
    write_about(folder, about)
    assert read_about(folder) == about


def test_a_flipped_bit_of_any_file_is_noticed_or_changes_nothing(folder):
    before = read_about(folder)
    for path in sorted(folder.iterdir()):
        if path.name == "README.md":
            continue
        whole = path.read_bytes()
        for place in range(0, len(whole), 5):
            for bit in (place % 8, 5):
                path.write_bytes(bytes([*whole[:place], whole[place] ^ (1 << bit), *whole[place + 1 :]]))
                # White space between the fields means nothing.
                assert is_noticed(folder) or read_about(folder) == before, (path.name, place, bit)
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", ["cut", "emptied", "zeroed", "longer", "deleted"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "mossa.json"])
def test_every_other_damage_is_noticed(folder, name, damage):
    path = folder / name
    whole = path.read_bytes()
    if damage == "deleted":
        path.unlink()
        # Without its record the folder says nothing of itself: a run takes it for no model and tunes it again.
        assert read_about(folder) == {} if name == "mossa.json" else is_noticed(folder)
        return
    path.write_bytes({"cut": whole[:-20], "emptied": b"", "zeroed": bytes(len(whole)), "longer": whole + b"x"}[damage])
    assert is_noticed(folder)


def test_a_folder_in_the_place_of_another_model_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "copies")
    about = read_about(other)
    check_owner(folder, about, "sums")
    with pytest.raises(Refusal, match=r"holds the model 'sums' and not 'copies'; delete") as caught:
        check_owner(other, about, "copies")
    assert caught.value.code == 3


def test_records_of_earlier_versions_and_of_others_are_taken_as_they_are(tmp_path):
    assert read_about(tmp_path) == {}
    (tmp_path / "mossa.json").write_text(json.dumps({"model": "old", "digest": "0123"}))
    about = read_about(tmp_path)
    assert about == {"model": "old", "digest": "0123"} and not is_checkable(about)
    check_files(tmp_path, about)


def test_weights_may_be_left_out(folder):
    write_about(folder, {"model": "sums"}, but=".safetensors")
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    assert set(read_about(folder)["files"]) == {"adapter_config.json"} and not is_noticed(folder)
