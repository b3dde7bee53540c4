"""tpu_vm.sh: the commands of every verb, and the reaction of watch to failures."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from launch_tools import LAUNCH, RUN, TPU, Tools, dry, launch

WHERE = "--zone=us-central2-b --quiet"
ON_ALL = f"gcloud compute tpus tpu-vm ssh tw {WHERE} --worker=all --command="


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path / "bin")


START = ["bash", "noisytwins_jax/launch/worker.sh", "start", *RUN, "--coordinator=auto"]
EXPECTED = {
    "create --accelerator=v4-32": [
        f"gcloud compute tpus tpu-vm create tw {WHERE} --accelerator-type=v4-32 --version=tpu-ubuntu2204-base"
    ],
    "create --accelerator=v5litepod-16 --spot --project=p": [
        "gcloud compute tpus tpu-vm create tw --zone=us-central2-b --project=p --quiet --accelerator-type=v5litepod-16 "
        "--version=v2-alpha-tpuv5-lite --spot"
    ],
    "create --accelerator=v6e-64 --queued": [
        f"gcloud compute tpus queued-resources create tw --node-id=tw {WHERE} --accelerator-type=v6e-64 "
        "--runtime-version=v2-alpha-tpuv6e",
        f"gcloud compute tpus queued-resources list {WHERE} '--filter=name~\"(^|/)tw$\"' '--format=value(state.state)'",
    ],
    "install": [
        f"tar -czf /scratch/noisytwins_jax-tw.tar.gz -C {LAUNCH.parent} --exclude=./.git --exclude=./.venv --exclude=./runs "
        "--exclude=./data --exclude=./build --exclude=./.run --exclude=__pycache__ '--exclude=*.egg-info' .",
        f"gcloud compute tpus tpu-vm scp /scratch/noisytwins_jax-tw.tar.gz tw:noisytwins_jax.tar.gz {WHERE} --worker=all",
        f"{ON_ALL}'mkdir -p noisytwins_jax && tar -xzf noisytwins_jax.tar.gz -C noisytwins_jax && "
        "bash noisytwins_jax/launch/worker.sh install'",
    ],
    "install --repo=https://host/r.git --revision=v1": [
        f"{ON_ALL}'test -d noisytwins_jax/.git || git clone https://host/r.git noisytwins_jax; cd noisytwins_jax && "
        "git fetch origin v1 && git checkout --detach FETCH_HEAD && cd .. && bash noisytwins_jax/launch/worker.sh install'"
    ],
    "data --bucket=gs://b/ --data=gs://b/data": [
        f"{ON_ALL}'bash noisytwins_jax/launch/worker.sh mount b'",
        f"{ON_ALL}'bash noisytwins_jax/launch/worker.sh copy gs://b/data'",
    ],
    "status": [
        f"gcloud compute tpus tpu-vm list {WHERE} '--filter=name~\"(^|/)tw$\"' '--format=value(state)'",
        f"{ON_ALL}'bash noisytwins_jax/launch/worker.sh state'",
    ],
    "log --worker=3": [
        f"gcloud compute tpus tpu-vm ssh tw {WHERE} --worker=3 '--command=bash noisytwins_jax/launch/worker.sh log'"
    ],
    "stop": [f"{ON_ALL}'bash noisytwins_jax/launch/worker.sh stop'"],
    "delete": [f"gcloud compute tpus tpu-vm delete tw {WHERE}"],
    "delete --queued": [f"gcloud compute tpus queued-resources delete tw {WHERE} --force"],
}


@pytest.mark.parametrize("verb", EXPECTED)
def test_tpu_vm_commands(verb: str, tools: Tools) -> None:
    expected = [shlex.split(command) for command in EXPECTED[verb]]
    assert dry("tpu_vm.sh", *verb.split(), *TPU, TMPDIR="/scratch") == expected
    result = tools.launch(
        "tpu_vm.sh", *verb.split(), *TPU, TMPDIR="/scratch", answers={"queued-resources list": ["ACTIVE"]}
    )
    assert result.returncode == 0, result.stderr
    assert tools.commands == expected


def test_tpu_vm_program_arguments_arrive_whole(tools: Tools) -> None:
    """Quotes survive this shell, and the one on the worker."""
    (command,) = dry("tpu_vm.sh", "run", *TPU, "--", *RUN)
    assert command[:-1] == shlex.split(ON_ALL)[:-1]
    assert shlex.split(command[-1].removeprefix("--command=")) == START
    assert tools.launch("tpu_vm.sh", "run", *TPU, "--", *RUN).returncode == 0
    assert tools.commands == [command]


UP = ["up", *TPU, "--accelerator=v4-32", "--spot", "--bucket=b", "--poll=0", "--", *RUN]
STATES = "tpu-vm list"
WORKERS = "worker.sh state"


def workers(*states: str) -> str:
    return "\n".join(f"worker w-{i} {state}" for i, state in enumerate(states))


def test_up_runs_what_its_dry_run_says(tools: Tools) -> None:
    answers = {STATES: ["READY"], WORKERS: [workers("running", "running"), workers("ended 0 9", "ended 0 8")]}
    result = tools.launch("tpu_vm.sh", *UP, answers=answers)
    assert result.returncode == 0, result.stderr
    text = launch("tpu_vm.sh", "--dry-run", *UP).stdout.split("# When a machine of the run was lost:\n")[0]
    planned = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    assert tools.commands == [*planned, *planned[-2:]]  # it checked twice
    assert tools.verbs == ["create", "scp", "install", "mount", "start", "list", "state", "list", "state"]


def test_preempted_tpus_are_created_again(tools: Tools) -> None:
    """With the commands of the dry run; a lack of machines and a failed installation are retried."""
    answers = {
        STATES: ["READY", "PREEMPTED", "", "READY"],
        WORKERS: [workers("running", "running"), workers("ended 0 9", "ended 0 9")],
        "tpu-vm create": [1, "made"],
        "worker.sh install": [1, "installed"],
    }
    watch = ["watch", *UP[1:]]
    result = tools.launch("tpu_vm.sh", *watch, answers=answers)
    assert result.returncode == 0, result.stderr
    again = ["list", "delete", "create", "list", "create", "scp", "install", "list", "scp", "install", "mount", "start"]
    assert tools.verbs == ["list", "state", *again, "list", "state"]
    text = launch("tpu_vm.sh", "--dry-run", *watch).stdout.split("# When the TPU was preempted:\n")[1]
    for line in text.splitlines():
        assert shlex.split(line) in tools.commands


def test_preempted_queued_tpus_are_queued_again(tools: Tools) -> None:
    answers = {
        STATES: ["", "READY"],
        "queued-resources list": ["SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"],
        WORKERS: [workers("ended 0 9")],
    }
    result = tools.launch("tpu_vm.sh", "watch", "--queued", *UP[1:], answers=answers)
    assert result.returncode == 0, result.stderr
    resources = [call[3:5] for call in tools.commands if call[:3] == ["gcloud", "compute", "tpus"]]
    assert resources[2:4] == [["queued-resources", "delete"], ["queued-resources", "create"]]
    assert tools.verbs[4:] == ["list", "list", "scp", "install", "mount", "start", "list", "state"]


OUTCOMES = {
    "finished": (["ended 0 1", "ended 0 2"], 0, []),
    "stopped": (["stopped", "stopped"], 143, []),
    "error": (["ended 2 5", "ended 134 4"], 2, ["ssh"]),
    "exception": (["ended 134 7", "ended 1 5"], 1, ["ssh"]),
    "peer lost first": (["ended 1 9", "ended 137 5"], None, ["stop", "mount", "start"]),
    "saved": (["ended 143 5", "ended 143 5"], None, ["stop", "mount", "start"]),
    "one alone": (["running", "ended 137 5"], None, ["stop", "mount", "start"]),
    "rebooted": (["lost", "lost"], None, ["stop", "mount", "start"]),
    "not started": (["idle", "idle"], None, ["stop", "mount", "start"]),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_outcomes_of_a_run(outcome: str, tools: Tools) -> None:
    """An error ends the watch with its status; a lost machine restarts the run, without creating the TPU again."""
    states, status, actions = OUTCOMES[outcome]
    answers = {STATES: ["READY"], WORKERS: [workers(*states), workers("ended 0 9", "ended 0 9")]}
    result = tools.launch("tpu_vm.sh", "watch", *UP[1:], answers=answers)
    assert result.returncode == (status or 0), result.stderr
    assert tools.verbs == ["list", "state", *actions, *([] if status is not None else ["list", "state"])]


def test_watch_gives_up_in_the_end(tools: Tools) -> None:
    crashing = {STATES: ["READY"], WORKERS: [workers("ended 139 5")]}
    result = tools.launch("tpu_vm.sh", "watch", *UP[1:], answers=crashing)
    assert result.returncode == 1 and "keeps failing" in result.stderr
    assert tools.verbs.count("start") == 2  # the third run that ends within minutes is the last
    no_machines = {STATES: ["PREEMPTED", ""], "tpu-vm create": [1]}
    result = tools.launch("tpu_vm.sh", "watch", "--restarts=4", *UP[1:], answers=no_machines)
    assert result.returncode == 1 and tools.verbs.count("create") == 4


def test_an_unreachable_tpu_is_left_alone(tools: Tools) -> None:
    """Nothing is deleted or created because gcloud fails, or because the user deleted the TPU."""
    result = tools.launch("tpu_vm.sh", "watch", *UP[1:], answers={STATES: [1]})
    assert result.returncode == 1 and "left alone" in result.stderr
    assert set(tools.verbs) == {"list"}
    result = tools.launch("tpu_vm.sh", "watch", *UP[1:], answers={STATES: [""]})
    assert result.returncode == 1 and "was deleted" in result.stderr and tools.verbs == ["list"]


@pytest.mark.slow
def test_gcloud_knows_every_flag(tmp_path: Path) -> None:
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed")
    env = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_PROJECT": "p"}
    up, queued = dry("tpu_vm.sh", *UP), dry("tpu_vm.sh", "up", "--queued", *UP[1:])
    commands = {tuple(c[:-1] if "--command=" in c[-1] else c) for c in [*up, *queued] if c[0] == "gcloud"}
    assert len(commands) >= 8
    for command in commands:
        result = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert "active account" in result.stderr, (command, result.stderr)  # which comes after the flags were read
