"""States that others saved: values against float64 NumPy, rows paired by id or refused, nothing unpickled."""

import json
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import mossa_jax as mossa
from mossa_jax.errors import Refusal
from mossa_jax.similarity import reference
from mossa_jax.states import folders as saved

N = 24
LAYERS = ("embed", "1", "2", "10", "final_norm")
IDS = [f"question {number}" for number in range(N)]


def centred_products(x, y):
    """(biased, debiased) HSIC from float64 doubly centred and U-centred Gram matrices, by explicit loops over terms."""
    k, m = (a.astype(np.float64) @ a.astype(np.float64).T for a in (x - x.mean(0), y - y.mean(0)))
    n = len(k)
    u = []
    for gram in (k, m):
        gram = gram - np.diag(np.diag(gram))
        row = gram.sum(1) / (n - 2)
        gram = gram - row[:, None] - row[None] + gram.sum() / ((n - 1) * (n - 2))
        u.append(gram - np.diag(np.diag(gram)))
    return (k * m).sum(), (u[0] * u[1]).sum()


def oracle(x, y):
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    pairs = [centred_products(a, b) for a, b in ((x, y), (x, x), (y, y))]
    return [xy / np.sqrt(xx * yy) for xy, xx, yy in zip(*pairs, strict=True)]


@pytest.fixture
def streams():
    """Returns the layers of two models of different widths, with an offset like that of language models."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 6))
    sides = [
        {
            name: (shared @ rng.standard_normal((6, width)) + rng.standard_normal((N, width)) + 20).astype(np.float32)
            for name in LAYERS
        }
        for width in (8, 12)
    ]
    return sides


def write_npy(folder, layers, ids=None):
    folder.mkdir()
    for name, array in layers.items():
        np.save(folder / f"{name}.npy", array)
    if ids is not None:
        (folder / "ids.txt").write_text("\n".join(map(str, ids)) + "\n")
    return str(folder)


def check(table, a, b, atol=1e-6):
    check_layers(table, a, b, {}, atol)


def check_layers(table, a, b, left_out, atol=1e-6):
    """Compares with float64 NumPy; `left_out` are rows by the name of the layer that they are not finite in."""
    assert table.columns.tolist() == ["layer", "estimator", "cka", "low", "high", "n", "undefined"]
    assert table.layer.tolist() == [name for name in LAYERS for _ in range(2)]
    for name, part in table.groupby("layer"):
        rows = np.setdiff1d(np.arange(N), left_out.get(name, []))
        wanted = oracle(np.asarray(a[name])[rows], np.asarray(b[name])[rows])
        assert part.estimator.tolist() == ["biased", "debiased"]
        np.testing.assert_allclose(part.cka, wanted, atol=atol)
        assert (part.low < part.cka).all() and (part.cka < part.high).all()


def refused(a, b, *words, **ids):
    with pytest.raises(Refusal) as caught:
        mossa.compare_saved(str(a), str(b), **ids)
    assert caught.value.code == 3
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_layers_in_natural_order_and_values_of_differing_widths(tmp_path, streams):
    a, b = (write_npy(tmp_path / side, layers) for side, layers in zip("ab", streams, strict=True))
    table = mossa.compare_saved(a, b)
    check(table, *streams)
    assert set(table.n) == {N} and table.attrs["dropped"] == []


def test_rows_of_one_item_are_related(tmp_path, streams):
    a, b = (write_npy(tmp_path / side, layers) for side, layers in zip("ab", streams, strict=True))
    items = np.arange(N) // 3
    table = mossa.compare_saved(a, b, items=[f"passage {item}" for item in items]).set_index(["layer", "estimator"])
    for name in LAYERS:
        wanted = reference.debiased_by_items(streams[0][name], streams[1][name], items)
        assert table.cka[name, "debiased"] == pytest.approx(wanted, abs=1e-6)


def test_one_safetensors_file_and_one_per_layer_are_read_the_same(tmp_path, streams):
    a, b = streams
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    save_file(a | {"ids": np.arange(N)}, tmp_path / "one/states.safetensors")
    for name, array in b.items():
        save_file({"hidden": array, "ids": np.arange(N)}, tmp_path / f"many/{name}.safetensors")
    check(mossa.compare_saved(str(tmp_path / "one"), str(tmp_path / "many")), a, b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_number_types(tmp_path, streams, dtype):
    a, b = ({name: array.astype(dtype) for name, array in side.items()} for side in streams)
    for side, layers in (("a", a), ("b", b)):
        (tmp_path / side).mkdir()
        save_file(layers, tmp_path / side / "states.safetensors")
    check(mossa.compare_saved(str(tmp_path / "a"), str(tmp_path / "b")), a, b)


def test_float64_keeps_digits_that_float32_would_cut(tmp_path, streams):
    a, b = ({name: array.astype(np.float64) * 1e-6 + 1e3 for name, array in side.items()} for side in streams)
    check(mossa.compare_saved(write_npy(tmp_path / "a", a), write_npy(tmp_path / "b", b)), a, b)
    flat = {name: np.full((N, 3), 0.1) for name in LAYERS}
    table = mossa.compare_saved(write_npy(tmp_path / "flat", flat), str(tmp_path / "b"))
    assert table.cka.isna().all() and table.undefined.str.contains("no variance in a").all()


def test_rows_that_are_not_finite_leave_their_layer_on_both_sides_and_are_named(tmp_path, streams, caplog):
    a, b = streams
    a["2"][3, 0], b["2"][5, 2], b["embed"][17, 1] = np.nan, -np.inf, np.inf
    folders = write_npy(tmp_path / "a", a, IDS), write_npy(tmp_path / "b", b, IDS)
    table = mossa.compare_saved(*folders)
    left_out = {"2": [3, 5], "embed": [17]}
    check_layers(table, a, b, left_out)
    assert table.set_index("layer").n.to_dict() == {name: N - len(left_out.get(name, [])) for name in LAYERS}
    assert table.attrs["dropped"] == ["question 3", "question 5", "question 17"]
    assert [r.getMessage() for r in caplog.records] == [
        f"{folders[0]}: 1 of {N} rows are not finite in some layer (2), and left out there on both sides: question 3",
        f"{folders[1]}: 2 of {N} rows are not finite in some layer (embed, 2), and left out there on both sides: "
        "question 5, question 17",
    ]
    unnamed = mossa.compare_saved(write_npy(tmp_path / "c", a), write_npy(tmp_path / "d", b))
    assert unnamed.attrs["dropped"] == ["row 3", "row 5", "row 17"]


def test_a_layer_without_finite_rows_is_undefined_alone(tmp_path, streams):
    a, b = streams
    b["2"][:] = np.inf
    a["10"][: N - 3] = np.nan
    folders = write_npy(tmp_path / "a", a), write_npy(tmp_path / "b", b)
    table = mossa.compare_saved(*folders, permutations=99)
    bad = table[table.layer.isin(["2", "10"])]
    assert bad[["cka", "low", "high", "p", "q"]].isna().all().all() and set(bad.n) == {0, 3}
    assert set(bad.undefined) == {
        f"layer 2 of {folders[1]} is not finite in {N} of {N} rows: 0 finite rows; at least 4 are needed",
        f"layer 10 of {folders[0]} is not finite in {N - 3} of {N} rows: 3 finite rows; at least 4 are needed",
    }
    good = mossa.compare_saved(
        *(
            write_npy(tmp_path / name, {layer: side[layer] for layer in ("embed", "1", "final_norm")})
            for name, side in zip("cd", streams, strict=True)
        ),
        permutations=99,
    )
    rest = table[~table.layer.isin(["2", "10"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, good, check_exact=True)


def test_items_and_intervals_of_a_layer_rest_on_its_own_rows(tmp_path, streams):
    a, b = streams
    a["1"][[0, 1, 2, 7], 0] = np.nan
    items, rows = np.arange(N) // 3, np.setdiff1d(np.arange(N), [0, 1, 2, 7])
    table = mossa.compare_saved(write_npy(tmp_path / "a", a), write_npy(tmp_path / "b", b), items=items)
    table = table.set_index(["layer", "estimator"])
    for name in LAYERS:
        kept = rows if name == "1" else np.arange(N)
        wanted = reference.debiased_by_items(a[name][kept], b[name][kept], items[kept])
        assert table.cka[name, "debiased"] == pytest.approx(wanted, abs=1e-6)
    alone = mossa.compare_saved(
        write_npy(tmp_path / "c", {"1": a["1"][rows], "2": a["2"][rows]}),
        write_npy(tmp_path / "d", {"1": b["1"][rows], "2": b["2"][rows]}),
        items=items[rows],
    ).set_index(["layer", "estimator"])
    columns = ["cka", "low", "high", "n"]
    np.testing.assert_allclose(table.loc["1"][columns], alone.loc["1"][columns], atol=1e-6)


def test_states_without_any_finite_layer_are_refused(tmp_path, streams):
    a, b = streams
    for layer in LAYERS:
        a[layer][:] = np.nan
    with pytest.raises(Refusal, match=r"layer embed of .*/a is not finite in 24 of 24 rows") as caught:
        mossa.compare_saved(write_npy(tmp_path / "a", a), write_npy(tmp_path / "b", b))
    assert caught.value.code == 5


def test_ids_come_from_any_of_their_files(tmp_path, streams):
    a = write_npy(tmp_path / "a", streams[0], range(N))
    b = write_npy(tmp_path / "b", streams[1])
    np.save(tmp_path / "b/ids.npy", np.arange(N))
    (tmp_path / "b/ids.json").write_text(json.dumps([str(number) for number in range(N)]))
    check(mossa.compare_saved(a, b), *streams)
    (tmp_path / "more.json").write_text(json.dumps(list(range(1, N + 1))))
    refused(a, b, "ids.json", "more.json", ids_b=str(tmp_path / "more.json"))


def test_rows_of_other_ids_or_in_another_order_are_refused(tmp_path, streams):
    a = write_npy(tmp_path / "a", streams[0], IDS)
    swapped = [*IDS[:5], IDS[6], IDS[5], *IDS[7:]]
    refused(a, write_npy(tmp_path / "b", streams[1], swapped), "row 5", "'question 5'", "'question 6'", "one order")
    refused(a, write_npy(tmp_path / "c", streams[1], [*IDS[:-1], "other"]), f"row {N - 1}", "'other'")
    refused(a, write_npy(tmp_path / "d", streams[1]), "none", "both")
    refused(a, tmp_path / "d", "question 9", "one row", ids_b=_ids_file(tmp_path / "twice.txt", [*IDS[:-1], IDS[9]]))
    refused(a, tmp_path / "d", f"{N - 1} ids", ids_b=_ids_file(tmp_path / "few.txt", IDS[:-1]))
    refused(a, tmp_path / "d", "absent.txt", ids_b=str(tmp_path / "absent.txt"))


def _ids_file(path, ids):
    path.write_text("\n".join(ids))
    return str(path)


def test_missing_layers_and_rows_are_refused(tmp_path, streams):
    a = write_npy(tmp_path / "a", streams[0])
    fewer = {name: array for name, array in streams[1].items() if name != "10"}
    b = write_npy(tmp_path / "b", fewer)
    refused(a, b, "lacks layer '10'")
    refused(b, a, "lacks layer '10'")
    refused(a, write_npy(tmp_path / "c", {k: v[:-1] for k, v in streams[1].items()}), f"{N - 1}", f"{N} rows")
    refused(a, write_npy(tmp_path / "d", streams[1] | {"2": streams[1]["2"][1:]}), "layer '2'", f"{N - 1} rows")
    refused(a, tmp_path / "nowhere", "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/layer_1.pt").write_bytes(b"\x80")
    refused(a, tmp_path / "empty", "layer_1.pt", ".npy")


def test_anything_but_a_plain_array_of_numbers_is_refused_and_never_unpickled(tmp_path, streams):
    a = write_npy(tmp_path / "a", streams[0])

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    def with_embed(name, array):
        folder = write_npy(tmp_path / name, {k: v for k, v in streams[1].items() if k != "embed"})
        np.save(pathlib.Path(folder, "embed.npy"), array, allow_pickle=True)
        return folder

    refused(a, with_embed("objects", np.array([[Bomb()]] * N, dtype=object)), "embed.npy", "pickle")
    (tmp_path / "objects/embed.npy").write_bytes(b"\x80\x04K\x01.")
    refused(a, tmp_path / "objects", "embed.npy", "pickle")
    assert not (tmp_path / "exploded").exists()
    refused(a, with_embed("whole", np.ones((N, 4), int)), "'embed'", "int64", "float32")
    refused(a, with_embed("narrow", np.ones((N, 4), ml_dtypes.bfloat16)), "'embed'", "bfloat16", "safetensors")
    refused(a, with_embed("deep", np.ones((N, 4, 2), np.float32)), "'embed'", "[24, 4, 2]")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/states.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    refused(a, tmp_path / "torn", "states.safetensors", "readable")


def test_layers_are_read_only_when_they_are_asked_for(tmp_path, streams):
    found = saved.open_states(write_npy(tmp_path / "a", streams[0]))
    assert list(found.layers) == list(LAYERS) and found.rows == N and found.ids is None
    assert isinstance(found.layers["10"](), np.memmap)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--states_a={a}", "--states_b={b}"), 0, ()),
        (("--states_a={a}", "--states_b={b}", "--base=x"), 2, ("--base", "--states_a")),
        (("--states_a={a}", "--states_b={c}"), 3, ("row 0",)),
        (("--states_a={a}", "--states_b={b}", "--items={a}/ids.txt"), 0, ()),
        (("--states_a={a}", "--states_b={b}", "--items={short}"), 3, ("items have shape [2]",)),
    ],
)
def test_the_command(tmp_path, root, streams, flags, code, words):
    folders = {"a": (streams[0], IDS), "b": (streams[1], IDS), "c": (streams[1], IDS[::-1])}
    places = {name: write_npy(tmp_path / name, *given) for name, given in folders.items()}
    places["short"] = tmp_path / "short.txt"
    places["short"].write_text("one\ntwo\n")
    out = tmp_path / "table.csv"
    done = subprocess.run(
        [sys.executable, "-m", "launch.compare", *(flag.format(**places) for flag in flags), f"--out={out}"],
        cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code:
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and all(word in lines[0] for word in words), lines
    else:
        check(pd.read_csv(out, dtype={"layer": str}, keep_default_na=False), *streams)


@pytest.mark.parametrize("name", ["states.safetensors", "rows.parquet"])
def test_a_damaged_file_of_saved_states_is_refused(tmp_path, name):
    states = {layer: np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32) for layer in ("embed", "1")}
    mossa.save_states(tmp_path / "a", states)
    assert mossa.load_states(tmp_path / "a")[0]["1"].tobytes() == states["1"].tobytes()
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(Refusal, match=rf"{name} is not as it was written, by SHA256SUMS") as caught:
        mossa.load_states(tmp_path / "a")
    assert caught.value.code == 3
