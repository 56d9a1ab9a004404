"""The notebooks of examples/: each runs from its first cell to its last, in a kernel of its own."""

import os

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def execute(path, monkeypatch, timeout):
    """Runs a notebook in the folder that it lies in; returns the text that its cells print."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=timeout, resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_two_models_are_equal_up_to_the_block_in_which_they_differ(root, monkeypatch):
    text = execute(root / "examples/01_two_models.ipynb", monkeypatch, timeout=300)
    rows = [line.split() for line in text.splitlines() if " debiased " in line and line[0].isdigit()]
    values = {row[1]: float(row[3]) for row in rows if row[2] == "debiased"}
    assert values["3"] == 1.0 and 0.2 < values["6"] < values["4"] < 1.0, values
    assert "3 x has shape [3, 64]" in text  # a refusal, with its exit code


@pytest.mark.slow
def test_a_run_and_its_tables(root, monkeypatch):
    text = execute(root / "examples/02_a_run.ipynb", monkeypatch, timeout=900)
    assert "exit code 0" in text and "report.html" in text
    assert "[not measured]" in text and "[undecided]" in text  # eight tasks and little training
    assert "translation_rund" in text and "control" in text


def test_notebooks_are_small_and_clean(root):
    files = sorted((root / "examples").glob("*.ipynb"))
    assert len(files) >= 2
    for path in files:
        assert path.stat().st_size < 60_000, f"{path.name}: strip large outputs"
        text = path.read_text()
        assert "/tmp/" not in text and "/home/" not in text and "/root/" not in text, path.name
