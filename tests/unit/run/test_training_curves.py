"""The training curves of a run folder, from the lines of metrics.jsonl."""

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.run.report import training_curves
from mossa_jax.run.warnings import training_counters
from mossa_jax.tuning.curves import LossCurves, begin_again
from mossa_jax.tuning.windows import Window


def test_the_bases_pre_training_is_no_specialist_even_where_a_task_has_its_name(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.append_metrics({"model": "pretraining", "kind": "base", "step": 80, "loss": 1.5})
    run_folder.append_metrics({"model": "pretraining", "step": 20, "loss": 0.5})
    run_folder.append_metrics({"stage": "E", "attempt": 1.0, "step": 20})
    assert training_curves(run_folder).values.tolist() == [["pretraining", 20, 0.5]]


def test_a_step_that_a_restart_repeated_counts_once_and_steps_without_a_finite_loss_are_left_out(tmp_path):
    curves = LossCurves(run_folder := RunFolder(tmp_path))
    for step, total, count in [(40, 8.0, 4), (20, 9.0, 3), (40, 8.0, 4), (60, 0.0, 0)]:
        curves.append("a", step, Window(losses=count, total=total), skipped=0, spikes=0)
    assert training_curves(run_folder).values.tolist() == [["a", 20, 3.0], ["a", 40, 2.0]]


def test_of_a_model_that_is_tuned_anew_nothing_older_counts(tmp_path):
    run_folder = RunFolder(tmp_path)
    curves = LossCurves(run_folder)
    for model, step, total in [("a", 20, 1.0), ("a", 35, 2.0), ("b", 20, 3.0)]:
        curves.append(model, step, Window(losses=1, total=total), skipped=1, spikes=0)
    begin_again(run_folder, ["a", "c"])
    curves.append("a", 20, Window(losses=1, total=4.0), skipped=0, spikes=0)
    assert training_curves(run_folder).values.tolist() == [["a", 20, 4.0], ["b", 20, 3.0]]
    assert training_counters(run_folder) == {
        "a": {"skipped": 0, "spikes": 0, "steps": 20},
        "b": {"skipped": 1, "spikes": 0, "steps": 20},
    }
    # A model that is exported is not recorded again; one of another round is.
    again = LossCurves(run_folder, exported=["b"])
    again.append("b", 20, Window(losses=1, total=9.0), skipped=0, spikes=0)
    again.append("a", 35, Window(losses=1, total=5.0), skipped=0, spikes=0)
    assert training_curves(run_folder).values.tolist() == [["a", 20, 4.0], ["a", 35, 5.0], ["b", 20, 3.0]]
