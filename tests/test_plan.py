"""Programs for TPU slices that are not here."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

LIBTPU = importlib.util.find_spec("libtpu") is not None


def plan(root, *flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.plan", *flags],
        cwd=root,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_what_cannot_be_planned_is_one_line(root):
    for flags, words in (
        (("--shape=llama2-7b", "--topology=v9:4x4"), "v9:4x4"),
        ((), "--shape"),
        (("--base=/no",), "/no"),
    ):
        done = plan(root, *flags)
        assert done.returncode in (2, 3) and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs the package libtpu")
@pytest.mark.parametrize("shape", ["llama2-7b", "llama3-8b", "llama2-70b"])
def test_the_forward_pass_compiles_and_fits(root, shape, tmp_path):
    topologies = "v5e:4x4,v5p:2x2x4,v6e:4x4"
    done = plan(root, f"--shape={shape}", f"--topology={topologies}", f"--out={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert [row["topology"] for row in found] == topologies.split(",")
    for row in found:
        assert row["fits"] and row["chips"] == 16 and row["attention"] == "splash"
        parameters = {"llama2-7b": 6_738_415_616, "llama3-8b": 8_030_261_248, "llama2-70b": 68_976_648_192}[shape]
        assert row["base"] == pytest.approx(2 * parameters / 16, rel=0.01)  # nothing of size is kept twice
