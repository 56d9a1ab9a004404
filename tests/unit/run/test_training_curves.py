"""The training curves of a run folder, from the lines of metrics.jsonl."""

from mossa_jax.files.run_folder import RunFolder
from mossa_jax.run.report import training_curves
from mossa_jax.tuning.curves import LossCurves
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
