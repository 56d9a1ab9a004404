"""The runs of a sweep: one after another, each in its folder, each taking over from the first."""

import json
from types import SimpleNamespace

import pytest

from mossa_jax.config import Config, sweep
from mossa_jax.errors import BAD_CONFIG, BAD_INPUT, STOPPED, Refusal
from mossa_jax.processes.stop import Stop
from mossa_jax.run import sweep as sweeps
from mossa_jax.run.options import Options

RUNS = sweep(Config(), seed=(0, 1, 2))


@pytest.fixture
def calls(monkeypatch):
    """What `in_run_folder` is called with; a name in `fails` is refused."""
    seen, fails = [], {}

    def in_run_folder(process, config, workdir, stage, profile, options):
        name = workdir.rsplit("/", 1)[-1]
        seen.append((name, config.seed, stage, profile, options))
        if name in fails:
            raise fails[name]

    monkeypatch.setattr(sweeps.pipeline, "in_run_folder", in_run_folder)
    return SimpleNamespace(seen=seen, fails=fails)


def start(tmp_path, options=None, stop=None):
    process = SimpleNamespace(stop=stop or Stop())
    return sweeps.run_sweep(process, RUNS, str(tmp_path / "s"), "stage", "3:2", options)


def test_each_run_has_its_folder_and_takes_over_from_the_first(tmp_path, calls):
    text = start(tmp_path, Options(stale="keep"))
    first = str(tmp_path / "s/seed=0")
    assert calls.seen == [
        ("seed=0", 0, "stage", "3:2", Options(stale="keep")),
        ("seed=1", 1, "stage", "3:2", Options(stale="keep", take_from=first)),
        ("seed=2", 2, "stage", "3:2", Options(stale="keep", take_from=first)),
    ]
    assert json.loads((tmp_path / "s/sweep.json").read_text()) == {f"seed={n}": {"seed": n} for n in range(3)}
    assert [line.strip() for line in text.splitlines()[2:5]] == [str(tmp_path / f"s/seed={n}") for n in range(3)]
    assert text.splitlines()[-1] == f"Compare them: python -m launch.runs {tmp_path}/s/*/"


def test_another_source_that_is_asked_for_serves_every_run(tmp_path, calls):
    start(tmp_path, Options(take_from="elsewhere"))
    assert [options.take_from for *_, options in calls.seen] == ["elsewhere"] * 3


@pytest.mark.parametrize("code", [BAD_INPUT, STOPPED])
def test_a_refusal_or_a_stop_ends_the_sweep_with_its_code_and_the_name_of_the_run(tmp_path, calls, code):
    calls.fails["seed=1"] = Refusal(code, "because")
    with pytest.raises(Refusal) as caught:
        start(tmp_path)
    assert caught.value.code == code and str(caught.value).startswith("seed=1") and "because" in str(caught.value)
    assert [name for name, *_ in calls.seen] == ["seed=0", "seed=1"]


def test_a_request_to_stop_between_two_runs_ends_the_sweep(tmp_path, calls):
    stop = Stop()
    stop.asked = True
    with pytest.raises(Refusal) as caught:
        start(tmp_path, stop=stop)
    assert caught.value.code == STOPPED and not calls.seen


@pytest.mark.parametrize("place", ["s/config.json", "s"])
def test_the_folder_of_a_run_or_a_file_is_no_folder_for_a_sweep(tmp_path, calls, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("{}")
    with pytest.raises(Refusal) as caught:
        start(tmp_path)
    assert caught.value.code == BAD_CONFIG and "the folder of one run, or a file" in str(caught.value)
    assert not calls.seen and not (tmp_path / "s/sweep.json").exists()


def test_a_store_that_nobody_knows_is_refused(calls):
    with pytest.raises(Refusal) as caught:
        sweeps.run_sweep(SimpleNamespace(stop=Stop()), RUNS, "s3x://bucket/s", "stage")
    assert caught.value.code == BAD_CONFIG and "s3x" in str(caught.value)
