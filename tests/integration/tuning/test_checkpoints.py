"""Checkpoints under damage, kills, a full disk and other meshes: a restored state is a saved one, to the bit."""

import gc
import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mossa_jax.config import Mesh
from mossa_jax.devices.mesh import make_mesh
from mossa_jax.errors import Refusal
from mossa_jax.tuning.checkpoints import Checkpoints
from mossa_jax.tuning.full_finetuning import FullState
from mossa_jax.tuning.guards import Guards
from mossa_jax.tuning.optimizer import Optimizer
from mossa_jax.tuning.population import PopulationState
from mossa_jax.tuning.pretrain import PretrainingState
from mossa_jax.tuning.windows import Window
from tests.support.processes import cpu, free_address, together

# When a save or a restore fails, Orbax leaves reads and writes behind that nobody waits for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DAMAGES = {
    "cut to half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
    "a bit flipped": lambda path: flip(path, 8 * (path.stat().st_size // 2) + 3),
}


def flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def state_at(step: int, models: int = 4, width: int = 8):
    """Returns a nested state like the population's, with moments and several dtypes; a function of the step alone."""
    rng = np.random.default_rng([models, width, step])
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    adapters = {
        target: {"a": draw(models, 2, width, 3), "b": jnp.asarray(draw(models, 2, 3, width), jnp.bfloat16)}
        for target in ("down_proj", "q_proj")
    }
    moments = jax.tree.map(lambda leaf: np.asarray(leaf) + step, optax.adam(1e-3).init(adapters))
    return jax.tree.map(jnp.asarray, {"adapters": adapters, "moments": moments, "step": np.full(models, step, "i4")})


def blank(state):
    return jax.tree.map(lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), state)


def assert_is(state, step: int, **shape) -> None:
    """Asserts that a state is that of this step, leaf by leaf and byte by byte."""
    wanted = state_at(step, **shape)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype and np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def save(folder, *steps: int, **options) -> None:
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, state_at(step))
    checkpoints.close()


def restore(folder, **options):
    checkpoints = Checkpoints(folder, **options)
    try:
        return checkpoints.restore(blank(state_at(0)))
    finally:
        checkpoints.close()


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "group"
    save(folder, 4, 8)
    return folder


@pytest.fixture
def copy(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "group"))


@pytest.fixture
def lines(caplog):
    """Returns what was logged since the last call, by level."""
    caplog.set_level(logging.INFO, "mossa_jax")

    def take():
        ours = [record for record in caplog.records if record.name == "mossa_jax"]
        messages = {level: [r.getMessage() for r in ours if r.levelname == level] for level in ("WARNING", "INFO")}
        caplog.clear()
        return messages

    return take


def test_the_manifest_names_every_file_with_its_size_and_digest(two_steps):
    for step in (4, 8):
        record = json.loads((two_steps / f"manifests/{step}.json").read_text())
        wanted = {
            name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents(two_steps / str(step)).items()
        }
        assert record["files"] == wanted and len(wanted) > 5
        assert record["step"] == step


def test_the_newest_two_are_kept_with_their_manifests_and_no_others(tmp_path):
    save(tmp_path / "group", 1, 2, 3, 4)
    assert sorted(path.name for path in (tmp_path / "group").iterdir()) == ["3", "4", "manifests"]
    assert files_of(tmp_path / "group/manifests") == ["3.json", "4.json"]
    state, step = restore(tmp_path / "group")
    assert step == 4
    assert_is(state, 4)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_the_newest_step_is_noticed_and_the_step_before_is_used(
    two_steps, tmp_path, lines, damage
):
    for number, name in enumerate(files_of(two_steps / "8")):
        folder = Path(shutil.copytree(two_steps, tmp_path / str(number)))
        DAMAGES[damage](folder / "8" / name)
        state, step = restore(folder)
        assert step == 4, name
        assert_is(state, 4)
        (warning,) = lines()["WARNING"]
        assert "step 8" in warning and str(folder) in warning and name in warning and "\n" not in warning
        assert not (folder / "8").exists() and not (folder / "manifests/8.json").exists()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_a_step_with_a_broken_manifest_is_not_trusted(copy, lines, damage):
    DAMAGES[damage](copy / "manifests/8.json")
    state, step = restore(copy)
    assert step == 4
    assert_is(state, 4)
    (warning,) = lines()["WARNING"]
    assert "step 8" in warning and str(copy) in warning and "manifest" in warning


def test_no_bit_of_a_manifest_can_flip_unnoticed(copy, lines):
    manifest = copy / "manifests/8.json"
    whole, step = contents(copy / "8"), manifest.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(step)), 60):
        manifest.write_bytes(step)
        for name, content in whole.items():
            (copy / "8" / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / "8" / name).write_bytes(content)
        flip(manifest, bit)
        assert restore(copy)[1] == 4, bit
        assert len(lines()["WARNING"]) == 1


def test_a_manifest_of_another_step_seals_nothing(copy, lines):
    shutil.copytree(copy / "4", copy / "12")
    shutil.copy(copy / "manifests/4.json", copy / "manifests/12.json")
    assert restore(copy)[1] == 8
    (warning,) = lines()["WARNING"]
    assert "step 12" in warning


def test_a_step_without_a_manifest_is_unfinished_and_not_damaged(copy, lines):
    (copy / "manifests/8.json").unlink()
    state, step = restore(copy)
    assert step == 4
    assert_is(state, 4)
    messages = lines()
    assert not messages["WARNING"] and len(messages["INFO"]) == 1
    assert "step 8" in messages["INFO"][0] and str(copy) in messages["INFO"][0]
    save(copy, 8)  # in its place
    assert restore(copy)[1] == 8


def test_where_no_step_can_be_trusted_training_starts_from_the_beginning(copy, lines):
    shutil.rmtree(copy / "8")
    DAMAGES["zeroed"](copy / "4/_METADATA")
    start = state_at(0)
    checkpoints = Checkpoints(copy)
    state, step = checkpoints.restore(start)
    checkpoints.close()
    assert step == 0 and state is start
    assert len(lines()["WARNING"]) == 2
    assert files_of(copy) == []


def test_files_that_orbax_would_not_read_change_nothing(copy, lines):
    (copy / "8/notes.txt").write_text("mine")
    (copy / "8/d/.nfs01").write_text("")
    (copy / "mine").mkdir()
    state, step = restore(copy)
    assert step == 8 and (copy / "mine").is_dir()
    assert_is(state, 8)
    assert not lines()["WARNING"]


@pytest.mark.parametrize("name", ["checkpoint", "array_metadatas/process_1"])
def test_files_that_orbax_would_read_but_did_not_save_are_not_trusted(copy, lines, name):
    (copy / "8" / name).write_text("{}")
    state, step = restore(copy)
    assert step == 4
    assert_is(state, 4)
    (warning,) = lines()["WARNING"]
    assert name in warning


def test_temporary_folders_are_removed_when_the_folder_is_opened(copy):
    shutil.copytree(copy / "8", copy / "12.orbax-checkpoint-tmp")
    Checkpoints(copy).close()
    assert sorted(path.name for path in copy.iterdir()) == ["4", "8", "manifests"]


def test_steps_of_another_config_are_refused_and_left_alone(tmp_path):
    folder = tmp_path / "group"
    save(folder, 4, 8, config="0123456789abcdef")
    before = contents(folder)
    for other in ("0123456789abcdee", ""):
        with pytest.raises(Refusal) as caught:
            restore(folder, config=other)
        assert caught.value.code == 2 and str(folder) in str(caught.value)
    assert contents(folder) == before
    state, step = restore(folder, config="0123456789abcdef")
    assert step == 8
    assert_is(state, 8)


def test_a_state_of_another_shape_is_refused_and_deletes_nothing(copy):
    before = contents(copy)
    for other in (state_at(0, width=16), {"adapters": state_at(0)["adapters"]}):
        checkpoints = Checkpoints(copy)
        with pytest.raises(Refusal) as caught:
            checkpoints.restore(other)
        checkpoints.close()
        assert caught.value.code == 2 and str(copy) in str(caught.value) and "step 8" in str(caught.value)
    assert contents(copy) == before


def population_state(fill: float) -> PopulationState:
    adapters = {"q_proj": {"a": jnp.full((4, 2, 8, 3), fill), "b": jnp.full((4, 2, 3, 8), fill)}}
    moments = Optimizer(1e-3, 0.0, 0.9, 0.999, 0.0, 1.0).transformation().init(adapters)
    guards = Guards.of(lambda dtype: jnp.full(4, fill, dtype))
    return PopulationState(adapters, guards, jax.tree.map(lambda leaf: leaf + 2, moments), jnp.full(4, fill, jnp.int32))


def full_state(fill: float) -> FullState:
    parameters = {"embedding": jnp.full((16, 8), fill), "blocks": {"weight": jnp.full((2, 8, 8), fill)}}
    moments = Optimizer(1e-3, 0.0, 0.9, 0.999, 0.0, 1.0).transformation().init(parameters)
    guards = Guards.of(lambda dtype: jnp.full((), fill, dtype))
    return FullState(guards, jax.tree.map(lambda leaf: leaf + 2, moments), parameters)


def pretraining_state(fill: float) -> PretrainingState:
    window = Window.of(lambda dtype: jnp.full((), fill, dtype))
    return PretrainingState(optax.adam(1e-3).init({"head": jnp.ones(3)}), {"head": jnp.full(3, fill)}, window)


@pytest.mark.parametrize("make", [population_state, full_state, pretraining_state])
def test_the_layout_on_disk_is_that_of_plain_dicts_with_the_fields_names(make, tmp_path):
    """Run folders from before the states were named tuples hold dicts: they resume, and new ones look the same."""
    state, blank_state = make(3.0), make(0.0)
    plain = state._asdict()
    if "guards" in plain:
        plain["guards"] = plain["guards"]._asdict()
        assert list(plain["guards"]) == ["bad", "skipped", "spikes", "usual", "window"]
    window = plain["guards"] if "guards" in plain else plain
    window["window"] = window["window"]._asdict()
    assert list(window["window"]) == ["losses", "total"]
    names = [
        ["adapters", "guards", "moments", "step"],
        ["guards", "moments", "parameters"],
        ["moments", "parameters", "window"],
    ]
    assert list(plain) in names
    for folder, tree in (("plain", plain), ("named", state)):
        checkpoints = Checkpoints(tmp_path / folder, stacked=True)
        checkpoints.save(7, tree)
        checkpoints.close()
    metadata = [(tmp_path / folder / "7/_METADATA").read_bytes() for folder in ("plain", "named")]
    assert metadata[0] == metadata[1]
    checkpoints = Checkpoints(tmp_path / "plain", stacked=True)
    restored, step = checkpoints.restore(blank_state)
    checkpoints.close()
    assert step == 7 and jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, state))


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    advance = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = {"a": jnp.zeros(1 << 18)}
    for step in range(1, 6):
        state = advance(state)
        checkpoints.save(step, state)
    state = advance(state)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored, step = checkpoints.restore({"a": jnp.zeros(1 << 18)})
    checkpoints.close()
    assert step == 5 and np.array_equal(restored["a"], np.full(1 << 18, 5.0))


def test_a_save_that_fails_raises_at_the_next_save_and_its_step_is_not_used(copy, lines):
    (copy / "manifests/12.json").mkdir()
    checkpoints = Checkpoints(copy)
    checkpoints.save(12, state_at(12))
    with pytest.raises(IsADirectoryError):
        checkpoints.save(16, state_at(16))
    checkpoints.close()  # does not raise a second time
    (copy / "manifests/12.json").rmdir()
    state, step = restore(copy)
    assert step == 8
    assert_is(state, 8)
    assert not lines()["WARNING"]


@pytest.fixture
def small_disk(tmp_path):
    """A mounted file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    if os.name != "posix" or os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_leaves_the_older_step(small_disk):
    folder, filler, page = small_disk / "group", small_disk / "filler", 4096
    save(folder, 1)
    failed, saved = 0, 1
    # From no free page to enough of them, so that the save fails at each of its writes.
    for step in range(2, 40):
        free = os.statvfs(small_disk).f_bavail
        filler.write_bytes(bytes(page * (free - (step - 2))))
        try:
            save(folder, step)
            saved = step
        except OSError as error:
            assert error.errno == 28 and str(folder) in str(error)
            failed += 1
        filler.unlink()
        state, restored = restore(folder)
        assert restored == saved
        assert_is(state, saved)
        assert not list(folder.glob("manifests/.*"))
    assert failed > 10 and saved == 39
    # Writes that Orbax abandoned may end late and create their folder again; the next opening removes it.
    deadline = time.monotonic() + 30
    while list(folder.glob("*tmp*")) and time.monotonic() < deadline:
        time.sleep(0.1)
        Checkpoints(folder).close()
    assert sorted(path.name for path in folder.iterdir()) == ["38", "39", "manifests"]
    gc.collect()  # so that asyncio reports abandoned writes here, and not in other tests


def script(function: str, *arguments) -> list[str]:
    """Returns a command that calls a function of this file in a process of its own."""
    code = "import sys; from tests.integration.tuning import test_checkpoints as here; "
    return [sys.executable, "-c", f"{code}here.{function}(*sys.argv[1:])", *map(str, arguments)]


def on_mesh(folder, step, process="", processes="", address=""):
    """Restores onto all devices of all processes and prints step and digest; then saves `step`, unless it is 0."""
    if processes:
        jax.distributed.initialize(address, int(processes), int(process))
    mesh = make_mesh(Mesh(-1, 1, 1))

    def place(state):
        count = mesh.shape["adapter"]
        over = lambda leaf: P("adapter") if leaf.ndim and leaf.shape[0] % count == 0 else P()  # noqa: E731
        return jax.tree.map(
            lambda leaf: jax.make_array_from_callback(
                leaf.shape, NamedSharding(mesh, over(leaf)), lambda index: np.asarray(leaf)[index]
            ),
            state,
        )

    start = place(jax.tree.map(np.zeros_like, state_at(0, models=8)))
    checkpoints = Checkpoints(folder)
    state, restored = checkpoints.restore(start)
    sha256 = hashlib.sha256()
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        whole = jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, P()))(leaf)
        sha256.update(np.asarray(whole.addressable_data(0)).tobytes())
    if int(step):
        checkpoints.save(int(step), place(state_at(int(step), models=8)))
    checkpoints.close()
    print(json.dumps([restored, sha256.hexdigest(), len(jax.devices())]))


def answer(step: int, devices: int):
    """Returns what `on_mesh` prints when it restores this step."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(state_at(step, models=8)):
        sha256.update(np.asarray(leaf).tobytes())
    return [step, sha256.hexdigest(), devices]


def last_line(output: str):
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_a_step_is_restored_onto_any_number_of_devices(root, tmp_path):
    folder = tmp_path / "group"
    answers = []
    for step, devices in enumerate((1, 8, 2, 1), 1):
        (output,) = together([script("on_mesh", folder, step)], root, devices, tmp_path)
        answers.append(last_line(output))
    assert answers[1:] == [answer(1, 8), answer(2, 2), answer(3, 1)]


@pytest.mark.slow
def test_two_processes_restore_the_same_step_and_one_process_resumes_from_it(root, tmp_path):
    folder = tmp_path / "group"

    def two(step: int):
        address = free_address()
        return [
            last_line(output)
            for output in together(
                [script("on_mesh", folder, step, index, 2, address) for index in range(2)], root, 2, tmp_path
            )
        ]

    two(1)
    assert two(2) == [answer(1, 4)] * 2
    DAMAGES["a bit flipped"](folder / "2/ocdbt.process_1/manifest.ocdbt")
    assert two(3) == [answer(1, 4)] * 2
    assert sum("is damaged" in (tmp_path / f"{index}.err").read_text() for index in range(2)) == 1
    (output,) = together([script("on_mesh", folder, 4)], root, 1, tmp_path)
    assert last_line(output) == answer(3, 1)
    assert two(0) == [answer(4, 4)] * 2


_WIDTH = 1 << 21  # takes long enough to write and to hash for kills to hit both


def save_forever(folder, told):
    """Saves every step, from the newest one on; appends to `told` which steps are certainly sealed."""
    advance = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(folder)
    state, step = checkpoints.restore({"adapters": jnp.arange(_WIDTH, dtype=jnp.int32), "step": jnp.zeros(3, "i4")})
    with open(told, "a") as file:
        file.write(f"restored {step}\n")
        while True:
            state, step = advance(state), step + 1
            checkpoints.save(step, state)
            file.write(f"sealed {step - 1}\n")
            file.flush()


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_from_the_newest_whole_step(root, tmp_path, lines):
    folder, told = tmp_path / "group", tmp_path / "told"
    rng, start, interrupted = random.Random(3), 0, 0
    for _ in range(10):
        told.write_text("")
        with (tmp_path / "err").open("w") as error:
            process = subprocess.Popen(
                script("save_forever", folder, told), cwd=root, env=cpu(root, 1), stdout=error, stderr=error
            )
        try:
            deadline = time.monotonic() + 60
            while told.read_text().count("\n") < 4 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
        finally:
            process.kill()
            process.wait()
        said = [line.split() for line in told.read_text().splitlines() if line]
        assert len(said) >= 4, (tmp_path / "err").read_text()[-3000:]
        assert said[0] == ["restored", str(start)]
        sealed = max(int(words[1]) for words in said[1:] if len(words) == 2)
        completed = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        interrupted += bool(list(folder.glob("*tmp*"))) or not (folder / f"manifests/{completed}.json").exists()
        checkpoints = Checkpoints(folder)
        state, start = checkpoints.restore({"adapters": jnp.zeros(_WIDTH, "i4"), "step": jnp.zeros(3, "i4")})
        checkpoints.close()
        assert start >= sealed and completed - 1 <= start <= completed
        assert np.array_equal(state["adapters"], np.arange(_WIDTH) + start)
        assert np.array_equal(state["step"], [start] * 3)
        assert not lines()["WARNING"]
        assert not list(folder.glob("*tmp*"))
    assert interrupted  # it was killed while it saved
