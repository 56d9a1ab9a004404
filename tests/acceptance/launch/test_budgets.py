"""Limits of hours and money, confirmation and help of the scripts that start runs, on stand-ins for the clouds."""

import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from tests.support.fake_cloud import calls, codes, executable, launch, make_cloud, until, upset

SCRIPTS = ("tpu_pod.sh", "gke_xpk.sh", "local_pod.sh", "slurm.sbatch", "on_worker.sh", "install.sh")
# Four chips at 900 an hour each cost 1 a second.
POD = ("flan", "z", "v5litepod-4", "--poll=0", "--yes", "--price=900")
GKE = ("flan", "c", "z", "v5litepod-4", "image", "--poll=0", "--yes", "--price=900")
# A run that saves on SIGTERM and otherwise never ends.
POLITE = (
    "--",
    "bash",
    "-c",
    'trap "echo saved >\\"\\$HOME/saved\\"; exit 75" TERM; echo up >"$HOME/up"; while :; do sleep 0.1; done',
)


def hours(seconds):
    return f"--max_hours={seconds / 3600:.6f}"


@pytest.fixture
def cloud(tmp_path):
    """A folder with two workers, and its environment: a delete may take 3 seconds."""
    folder, env = make_cloud(tmp_path)
    return folder, env | {"MOSSA_PATIENCE": "3"}


# ---- help and wrong flags


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_it_does_its_flags_and_an_example(root, script):
    done = launch(root, script, "--help")
    assert done.returncode == 0 and not done.stderr
    text = (root / "launch" / script).read_text()
    known = set(re.findall(r"^ +(--[a-z_]+)(?:=\*)?\)", text, re.MULTILINE)) - {"--"}
    if "budget_flag" in text:
        known |= {"--max_hours", "--max_cost", "--price"}
    assert all(flag in done.stdout for flag in known), known
    assert f"{script} " in done.stdout and not done.stdout.startswith("#") and "set -euo" not in done.stdout


WRONG = ("0", "-1", "nan", "inf", "two", "", "1h", "1,5", "1e3", "0.0")


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke_xpk.sh", "local_pod.sh", "slurm.sbatch"])
def test_ten_wrong_amounts_are_refused_in_a_line(root, script):
    places = {"tpu_pod.sh": POD, "gke_xpk.sh": GKE, "local_pod.sh": ("2",), "slurm.sbatch": ()}[script]
    flags = ["--max_hours"] if script == "local_pod.sh" else ["--max_hours", "--max_cost", "--price"]
    for flag in flags:
        for value in WRONG:
            done = launch(root, script, *places, f"{flag}={value}", "--", "true")
            assert done.returncode == 2 and not done.stdout
            assert done.stderr == f"error: {flag}={value}: give a number above 0, as in {flag}=8 or {flag}=0.5\n"
        done = launch(root, script, *places, flag, "--", "true")
        assert done.returncode == 2 and done.stderr == f"error: {flag}: it needs a value, as in {flag}=8\n"


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("tpu_pod.sh", ("flan", "z", "v4-8", "--max_cost=5", "--runtime=r"), "no list price is known of TYPE=v4-8"),
        ("gke_xpk.sh", ("n", "c", "z", "v6e-8", "i", "--max_cost=5"), "no list price is known of TYPE=v6e-8"),
        ("slurm.sbatch", ("--max_cost=5",), "give --price of a GPU"),
    ],
)
def test_money_without_a_price_is_refused(root, cloud, script, words, said):
    folder, env = cloud
    executable(folder / "bin/python", "exit 1")  # no plan, no list
    if (root / ".venv/bin/python").exists() and script != "slurm.sbatch":
        pytest.skip("this checkout has an environment of its own, which knows prices")
    done = launch(root, script, *words, "--", "true", **env)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


# ---- the confirmation


def test_without_a_terminal_nothing_is_created_unless_yes(root, cloud):
    folder, env = cloud
    words = [word for word in POD if word != "--yes"]
    done = launch(root, "tpu_pod.sh", *words, "--max_hours=2", "--max_cost=7000", "--", "true", **env)
    assert done.returncode == 2 and not (folder / "calls").exists()
    assert "4 chips at 900 an hour each: 3600.00 an hour" in done.stderr
    assert "--max_hours=2, which is 7200.00 at most" in done.stderr
    assert "--max_cost=7000, which is 1.94 hours" in done.stderr
    assert "nobody is there to confirm this; give --yes" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("answer", "creates"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_at_a_terminal_it_asks(root, cloud, answer, creates):
    folder, env = cloud
    codes(folder, [0], [0])
    words = [word for word in POD if word != "--yes"]
    command = ["bash", str(root / "launch/tpu_pod.sh"), *words, "--", "bash", "-c", '. "$HOME/worker.sh"']
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = subprocess.run(command, env=os.environ | env, stdin=theirs, capture_output=True, text=True, timeout=300)
    os.close(ours)
    os.close(theirs)
    assert "Create it? [y/N]" in done.stderr and "without a limit" in done.stderr
    assert done.returncode == (0 if creates else 2), done.stderr
    assert (folder / "calls").exists() == creates
    if not creates:
        assert "not confirmed, nothing was created" in done.stderr


@pytest.mark.slow
def test_the_price_and_the_plan_come_from_launch_plan(root, cloud):
    """The real one: its price list, and a line by formula for the command's config."""
    folder, env = cloud
    executable(folder / "bin/python", f'exec {sys.executable} "$@"')
    words = ("flan", "z", "v5litepod-16", "--", "python", "-m", "launch.run", "--config=llama2_7b_flan2021")
    done = launch(root, "tpu_pod.sh", *words, "--config.tuning.score_prompts=0", **env)
    assert done.returncode == 2 and "16 chips at 1.20 an hour each: 19.20 an hour" in done.stderr
    plan = re.search(
        r"plan: .* on v5e:4x4, by formula: ([\d.]+) hours, ([\d.]+) chip-hours, ([\d.]+) in money", done.stderr
    )
    assert plan is not None, done.stderr
    assert abs(float(plan[2]) * 1.2 - float(plan[3])) < 0.1 and float(plan[1]) < 7.4  # without the scores


# ---- limits of tpu_pod.sh


def test_a_limit_in_the_queue_takes_the_request_back(root, cloud):
    folder, env = cloud
    upset(folder, create_1='echo WAITING_FOR_RESOURCES >"$FAKE/state"; exit 0')
    words = [word.replace("--poll=0", "--poll=1") for word in POD]
    done = launch(root, "tpu_pod.sh", *words, hours(4), *POLITE, **env)
    assert done.returncode == 75, done.stderr
    assert calls(folder) == ["create", "delete"] and not (folder / "state").exists()
    assert "reached" in done.stderr and "is still there" not in done.stderr
    assert re.search(r"--valid-until-duration=[1-4]s", (folder / "calls").read_text())


def test_money_does_not_count_in_the_queue(root, cloud):
    """Ten looks of a second in the queue, with money for eight seconds; a start that takes longer than the rest."""
    folder, env = cloud
    upset(
        folder,
        create_1='echo WAITING_FOR_RESOURCES >"$FAKE/state"; exit 0',
        describe_10='echo ACTIVE >"$FAKE/state"',
        scp_1="exec sleep 60",
    )
    words = [word.replace("--poll=0", "--poll=1") for word in POD]
    done = launch(root, "tpu_pod.sh", *words, "--max_cost=8", *POLITE, **env)
    assert done.returncode == 75, done.stderr
    assert calls(folder) == ["create", "scp", "delete"] and (folder / "calls").read_text().count("describe") == 10
    assert done.stderr.index("flan: ACTIVE") < done.stderr.index("--max_cost=8 reached")


def at_the_limit(root, cloud, *flags):
    """A run whose limit is reached, by a signal in place of the clock, once it is followed."""
    folder, env = cloud
    command = ["bash", str(root / "launch/tpu_pod.sh"), *POD, *flags, *POLITE]
    with (folder / "said").open("w") as said:
        running = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=said)
        until(lambda: (folder / "calls").exists() and "follow" in calls(folder), "the run")
        until(lambda: all((folder / worker / "up").exists() for worker in ("w0", "w1")), "the workers")
        running.send_signal(signal.SIGUSR1)
        return running.wait(timeout=100), (folder / "said").read_text()


@pytest.mark.parametrize("flag", ["--max_hours=1", "--max_cost=3600"])
def test_a_limit_while_it_runs_saves_and_deletes(root, cloud, flag):
    folder, _ = cloud
    code, said = at_the_limit(root, cloud, "--keep", flag)
    assert code == 75, said
    assert calls(folder) == ["create", "scp", "setup", "start", "follow", "stop", "code", "delete"]
    assert all((folder / worker / "saved").exists() for worker in ("w0", "w1"))
    assert f"{flag} is nearly reached: the run is asked to save and stop" in said and "is still there" not in said


def test_a_delete_that_hangs_is_given_up_and_tried_again(root, cloud):
    folder, _ = cloud
    upset(folder, delete_1="exec sleep 300", delete_2="exit 1")
    code, said = at_the_limit(root, cloud, "--max_hours=1")
    assert code == 75, said
    assert calls(folder)[-3:] == ["delete"] * 3 and not (folder / "state").exists()
    assert "could not be deleted, 1 of 10" in said and "is still there" not in said


def test_somebody_s_request_in_the_queue_is_left_alone_and_named(root, cloud):
    folder, env = cloud
    (folder / "state").write_text("WAITING_FOR_RESOURCES\n")
    words = [word.replace("--poll=0", "--poll=1") for word in POD]
    done = launch(root, "tpu_pod.sh", *words, hours(3), *POLITE, **env)
    assert done.returncode == 75 and calls(folder) == [] and (folder / "state").exists()
    assert "was there before this script" in done.stderr and "delete flan --zone=z --force" in done.stderr


def test_a_delete_that_never_works_is_said_loudly(root, cloud):
    folder, env = cloud
    codes(folder, [0], [0])
    upset(folder, **{f"delete_{count}": "exit 1" for count in range(1, 12)})
    done = launch(root, "tpu_pod.sh", *POD, "--", "bash", "-c", '. "$HOME/worker.sh"', **env)
    assert done.returncode == 1 and calls(folder).count("delete") == 10
    assert "flan COULD NOT BE DELETED and goes on costing money" in done.stderr
    assert "Delete it: gcloud compute tpus queued-resources delete flan --zone=z --force" in done.stderr


def test_a_delete_that_worked_without_saying_so_is_no_failure(root, cloud):
    folder, env = cloud
    codes(folder, [0], [0])
    upset(folder, delete_1='rm "$FAKE/state"; exit 1')
    done = launch(root, "tpu_pod.sh", *POD, "--", "bash", "-c", '. "$HOME/worker.sh"', **env)
    assert done.returncode == 0 and calls(folder).count("delete") == 1, done.stderr


def test_a_run_that_ends_before_the_limit_is_not_touched(root, cloud):
    folder, env = cloud
    codes(folder, [0], [0])
    done = launch(root, "tpu_pod.sh", *POD, "--max_hours=5", "--", "bash", "-c", '. "$HOME/worker.sh"', **env)
    assert done.returncode == 0 and calls(folder) == ["create", "scp", "setup", "start", "follow", "code", "delete"]
    assert "reached" not in done.stderr


# ---- limits of the others


def xpk(tmp_path, deletes="exit 0"):
    text = f'cd {tmp_path}; echo "$2" >>calls\ncase $2 in list) exec sleep 100 ;; delete) {deletes} ;; esac'
    executable(tmp_path / "xpk", text)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MOSSA_PATIENCE": "2"}


@pytest.mark.parametrize("flag", [hours(4), "--max_cost=4"])
def test_a_workload_is_deleted_at_its_limit(root, tmp_path, flag):
    done = launch(root, "gke_xpk.sh", *GKE, flag, "--", "true", **xpk(tmp_path))
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "calls").read_text().split() == ["create", "list", "delete"]
    assert "nearly reached" in done.stderr and "is still there" not in done.stderr


def test_a_workload_that_cannot_be_deleted_is_said_loudly(root, tmp_path):
    done = launch(root, "gke_xpk.sh", *GKE, hours(2), "--", "true", **xpk(tmp_path, "exit 1"))
    assert done.returncode == 1 and (tmp_path / "calls").read_text().split().count("delete") == 10
    assert "COULD NOT BE DELETED" in done.stderr and "Delete it: xpk workload delete" in done.stderr


def test_a_workload_needs_a_confirmation(root, tmp_path):
    words = [word for word in GKE if word != "--yes"]
    done = launch(root, "gke_xpk.sh", *words, "--", "true", **xpk(tmp_path))
    assert done.returncode == 2 and "give --yes" in done.stderr and not (tmp_path / "calls").exists()


def test_a_local_pod_stops_at_its_limit_and_is_not_started_again(root, tmp_path):
    text = 'trap "exit 75" TERM; echo up; while :; do sleep 0.1; done'
    worker = executable(tmp_path / "worker.sh", f'echo "$$" >>{tmp_path}/started\n{text}')
    done = launch(root, "local_pod.sh", "2", f"--logs={tmp_path}/logs", "--retry=5", hours(3), "--", worker)
    assert done.returncode == 75, done.stderr
    assert "reached: all processes are asked to stop" in done.stderr
    assert len((tmp_path / "started").read_text().split()) == 2


def slurm(root, tmp_path, text, *words):
    """slurm.sbatch with an srun that is the command, which is `text`."""
    executable(tmp_path / "srun", text)
    for name in ("scontrol", "scancel"):
        executable(tmp_path / name, f'echo {name} "$@" >>{tmp_path}/calls')
    (tmp_path / "root/launch").parent.mkdir(exist_ok=True)
    if not (tmp_path / "root/launch").exists():
        (tmp_path / "root/launch").symlink_to(root / "launch")
    env = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": f"{tmp_path}/root", "SLURM_GPUS_ON_NODE": "4"}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "XLA_FLAGS": ""}
    done = launch(root, "slurm.sbatch", *words, "--", "true", **env)
    called = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return done, called


@pytest.mark.parametrize("flags", [(hours(8),), ("--max_cost=8", "--price=900")])
def test_a_job_saves_at_its_limit_and_is_not_queued_again(root, tmp_path, flags):
    done, called = slurm(root, tmp_path, 'trap "exit 75" TERM; while :; do sleep 0.1; done', *flags)
    assert done.returncode == 75 and called == [], done.stderr
    assert "nearly reached" in done.stderr
    # The same job later: nothing is left.
    done, called = slurm(root, tmp_path, "exit 0", *(flag.replace("8", "1") for flag in flags[:1]), *flags[1:])
    assert done.returncode == 75 and "was reached by earlier attempts" in done.stderr


def test_a_job_that_does_not_stop_is_ended(root, tmp_path):
    done, called = slurm(root, tmp_path, "trap '' TERM; while :; do sleep 0.1; done", hours(4))
    assert done.returncode != 0 and called == ["scancel 17"], done.stderr


def test_an_attempt_within_the_limit_is_queued_again(root, tmp_path):
    done, called = slurm(root, tmp_path, "exit 75", "--max_hours=1", "--max_cost=50", "--price=2")
    assert done.returncode == 75 and called == ["scontrol requeue 17"], done.stderr
    assert re.fullmatch(r"start \d+\nend \d+\n", (tmp_path / "root/runs/slurm-17.budget").read_text())
