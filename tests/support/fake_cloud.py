"""Stand-ins for gcloud and its workers, and the launch scripts as processes."""

import os
import shlex
import subprocess
import time

# A run of two workers on stand-ins: pops the first of its exit codes, and may do something before.
WORKER = """
cd "$HOME"
code=$(head -n 1 codes)
sed -i 1d codes
echo "start on ${HOME##*/}"
if [ -e before.sh ]; then . ./before.sh; fi
exit "$code"
"""

# gcloud for two workers whose homes are folders here; `state` is the queued resource. Before it does for the nth time
# what it is asked for (create, describe, scp, setup, start, ...) it reads <what>.<n>.sh, if a test has such a file.
GCLOUD = """
printf '%q ' "$@" >>"$FAKE/calls"; echo >>"$FAKE/calls"
command= output= workers='0 1'
for word in "$@"; do
  case $word in
    --command=*) command=${word#*=} ;;
    --output-directory=*) output=${word#*=} ;;
    --worker=0) workers=0 ;;
  esac
done
what=$4
case $command in *on_worker.sh*) what=${command##*on_worker.sh }; what=${what%% *} ;; esac
echo >>"$FAKE/count.$what"
before=$FAKE/$what.$(wc -l <"$FAKE/count.$what").sh
if [ -e "$before" ]; then . "$before"; fi
case "$3 $4" in
  'queued-resources describe')
    if [ ! -s "$FAKE/state" ]; then
      echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource '$5' was not found." >&2
      exit 1
    fi
    cat "$FAKE/state" ;;
  'queued-resources create') [ ! -s "$FAKE/state" ] || exit 1; echo ACTIVE >"$FAKE/state" ;;
  'queued-resources delete') rm "$FAKE/state" ;;
  'tpu-vm scp') for w in $workers; do cp "$5" "$FAKE/w$w/${6#*:}" || exit 1; done ;;
  'tpu-vm ssh')
    worst=0
    for w in $workers; do
      out=/dev/stdout
      if [ -n "$output" ]; then out=$output/$w.log; fi
      (cd "$FAKE/w$w" && HOME=$PWD exec bash -c "$command") >"$out" || worst=$?
    done
    exit "$worst" ;;
esac
"""

PYTHON = """
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; else echo "$@" >>"$HOME/python"; fi
"""


def executable(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)
    return path


def launch(root, script, *words, **env):
    """A script to its end: what it said and its code."""
    command = ["bash", str(root / "launch" / script), *map(str, words)]
    return subprocess.run(
        command, cwd=root, env=os.environ | env, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL
    )


def until(true, what):
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def make_cloud(tmp_path):
    """Makes a folder with two workers; returns it with its environment: `gcloud`, and a Python without pip."""
    for worker in ("w0", "w1"):
        (tmp_path / worker).mkdir()
        (tmp_path / worker / "worker.sh").write_text(WORKER)
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/gcloud", GCLOUD)
    executable(tmp_path / "bin/python3.13", PYTHON)
    env = {"FAKE": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "MOSSA_GRACE": "2"}
    return tmp_path, env


def codes(folder, first, second):
    for worker, listed in (("w0", first), ("w1", second)):
        (folder / worker / "codes").write_text("".join(f"{code}\n" for code in listed))


def calls(folder):
    """What gcloud was asked for, in short."""
    found = []
    for line in (folder / "calls").read_text().splitlines():
        words = shlex.split(line)
        command = next((word for word in words if word.startswith("--command=")), "")
        found.append(command.split("on_worker.sh ")[1].split()[0] if command else words[3])
    return [word for word in found if word != "describe"]


def upset(folder, **hooks):
    """What goes wrong: `start_2="exit 255"` at the second start."""
    for name, text in hooks.items():
        what, _, count = name.rpartition("_")
        (folder / f"{what}.{count}.sh").write_text(f"{text}\n")
