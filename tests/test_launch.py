"""The launch scripts, run against fake gcloud, srun and scontrol; the JobSet, field by field."""

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simjax import config

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FILES = sorted(path.name for path in LAUNCH.iterdir() if path.is_file())  # not aot/
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
ODD = """--config.sample_every=it's "7" $HOME `a` \\ *"""  # must arrive unchanged
CONFIG = "--config=configs/cifar10.py"
PROGRAM = ["-m", "simjax.main", CONFIG]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a script in the repository's root, without the caller's TPU or JAX variables."""
    inherited = {k: v for k, v in os.environ.items() if not re.match("TPU_|JAX_|SIMJAX_|SLURM", k)}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(_without_ansi_c(line), comments=True) for line in printed.splitlines()]


def _without_ansi_c(line: str) -> str:
    """Bash's $'...', which shlex cannot parse, as a quoted word."""
    escapes = {"\\n": "\n", "\\'": "'", "\\\\": "\\", '\\"': '"'}

    def plain(match: re.Match) -> str:
        return shlex.quote(re.sub(r"\\.", lambda m: escapes[m[0]], match[1]))

    return re.sub(r"\$'((?:[^'\\]|\\.)*)'", plain, line)


def fakes(directory: Path, **programs: str) -> str:
    """A PATH with fake programs first; each logs its arguments to directory/calls."""
    for name, body in programs.items():  # workers call concurrently: the log is locked
        note = f"""{{ flock 8; printf '%s\\0' {name} "$@"; echo; }} 8>>{directory}/calls >&8"""
        executable(directory / "bin" / name, f"#!/bin/bash\n{note}\n{body}\n")
    return f"{directory}/bin:{Path(sys.executable).parent}:/usr/bin:/bin"


def calls(directory: Path) -> list[list[str]]:
    path = directory / "calls"
    noted = path.read_text().split("\0\n")[:-1] if path.exists() else []
    return [call.split("\0") for call in noted]


# All scripts


def test_all_launch_files_exist():
    assert SCRIPTS == ["gpu.sh", "slurm.sbatch", "tpu_pod.sh"]
    assert (LAUNCH / "gke_jobset.yaml").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_and_shellcheck_report_nothing(script):
    path = LAUNCH / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    for checker in (["bash", "-n"], [str(Path(sys.executable).parent / "shellcheck")]):
        done = subprocess.run([*checker, str(path)], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES)
def test_paths_fields_and_flags_in_the_files_exist(file):
    text = (LAUNCH / file).read_text()
    for path in re.findall(r"(?<![\w/])(?:configs|launch|tests)/[\w/]+\.\w+", text):
        assert (ROOT / path).is_file(), path
    for field in re.findall(r"--config\.([a-z][\w.]*)", text):
        assert field in config.known_fields(), field
    flags = set(re.findall(r"launch/tpu_pod\.sh (--.*?) --config", text)) if file[0] == "R" else ()
    usage = run("tpu_pod.sh", "--help").stdout
    for flag in " ".join(flags).split():
        assert f"  {flag.split('=')[0]}" in usage, flag


def test_no_script_sets_hyperparameters():
    for file in FILES:
        if file != "README.md":
            assert not re.search(r"--config\.[a-z]", (LAUNCH / file).read_text()), file


# gpu.sh


def test_gpu_dry_run_prints_the_command_and_runs_nothing(tmp_path):
    path = fakes(tmp_path, **{"nvidia-smi": "", "python": ""})
    done = run("gpu.sh", "--dry-run", CONFIG, ODD, PATH=path)
    assert commands(done.stdout) == [["python", *PROGRAM, ODD]]
    assert not calls(tmp_path)


def test_gpu_sets_the_jax_variables_for_several_machines(tmp_path):
    shown = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"; exit 3'
    path = fakes(tmp_path, python=shown, **{"nvidia-smi": "echo GPU 0: H100"})
    own = ["--coordinator=host0:1234", "--count=2", "--index=1"]
    done = run("gpu.sh", *own, CONFIG, ODD, PATH=path)
    assert done.returncode == 3 and "host0:1234 2 1\n" in done.stdout
    assert calls(tmp_path)[-1] == ["python", *PROGRAM, ODD]
    dry = run("gpu.sh", "--dry-run", *own, CONFIG, PATH=path)
    assert commands(dry.stdout)[0][:2] == ["env", "JAX_COORDINATOR_ADDRESS=host0:1234"]


def test_gpu_execs_the_program_so_that_signals_reach_it(tmp_path):
    path = fakes(tmp_path, python="echo $$", **{"nvidia-smi": "echo GPU 0: H100"})
    command = ["bash", str(LAUNCH / "gpu.sh"), CONFIG]
    script = subprocess.Popen(command, env={"PATH": path}, stdout=subprocess.PIPE, text=True)
    assert int(script.communicate(timeout=30)[0].splitlines()[-1]) == script.pid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config=FILE is missing"),
        (("--coordnator=a:1", CONFIG), "unknown argument --coordnator=a:1"),
        (("--count=2", CONFIG), "need all of --coordinator=HOST:PORT, --count=N and --index=I"),
        ((CONFIG,), "nvidia-smi lists no GPU here"),
    ],
)
def test_gpu_refuses_with_a_remedy(arguments, message, tmp_path):
    path = fakes(tmp_path, python="", **{"nvidia-smi": "echo No devices found."})
    done = run("gpu.sh", *arguments, PATH=path)
    assert done.returncode == 1 and message in done.stderr
    assert "python" not in [call[0] for call in calls(tmp_path)]


# slurm.sbatch


SRUN = ["srun", "--kill-on-bad-exit=1", "--gpu-bind=none", "python", *PROGRAM]


def slurm(directory: Path, *, step: str, state: str = "RUNNING", **environment: str):
    """Runs the job script with `step` as srun's body and the job in `state`."""
    path = fakes(directory, srun=step, scontrol=f"echo JobState={state} Reason=None")
    workdir = f"--workdir={directory}/run dir"
    environment = {"PATH": path, "SLURM_JOB_ID": "41"} | environment
    return run("slurm.sbatch", CONFIG, workdir, ODD, **environment)


def requeued(directory: Path) -> bool:
    return ["scontrol", "requeue", "41"] in calls(directory)


def test_slurm_dry_run_prints_the_step_and_the_requeue(tmp_path):
    done = slurm(tmp_path, step="", DRY_RUN="1")
    step, requeue = commands(done.stdout)
    assert step == [*SRUN, f"--workdir={tmp_path}/run dir", ODD]
    assert requeue == ["scontrol", "requeue", "41"]
    assert not calls(tmp_path)


def test_slurm_requeues_a_run_without_a_report(tmp_path):
    assert slurm(tmp_path, step="exit 0").returncode == 0
    assert calls(tmp_path)[0] == [*SRUN, f"--workdir={tmp_path}/run dir", ODD]
    assert requeued(tmp_path)


def test_slurm_does_not_requeue_a_finished_run(tmp_path):
    report = f'mkdir "{tmp_path}/run dir" && touch "{tmp_path}/run dir/report.json"'
    assert slurm(tmp_path, step=report).returncode == 0
    assert not requeued(tmp_path)


@pytest.mark.parametrize("state", ["CANCELLED", "PENDING"])  # scancel; requeued by SLURM
def test_slurm_does_not_requeue_a_cancelled_or_preempted_job(state, tmp_path):
    assert slurm(tmp_path, step="exit 0", state=state).returncode == 0
    assert not requeued(tmp_path)


def test_slurm_does_not_requeue_a_failed_step(tmp_path):
    assert slurm(tmp_path, step="exit 7").returncode == 7
    assert not requeued(tmp_path)


def test_slurm_gives_up_after_max_restarts(tmp_path):
    done = slurm(tmp_path, step="exit 0", SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    assert done.returncode == 1 and "not finished after 3 restarts" in done.stderr
    assert not requeued(tmp_path)


def test_slurm_script_survives_sigterm_while_the_step_saves(tmp_path):
    saves = f"kill -TERM $PPID; sleep 0.3; touch {tmp_path}/saved"
    assert slurm(tmp_path, step=saves).returncode == 0
    assert (tmp_path / "saved").exists() and requeued(tmp_path)


def test_slurm_options_match_what_jax_detects():
    options = re.findall(r"^#SBATCH --(\S+)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    options = dict(option.partition("=")[::2] for option in options)
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # one task per GPU
    assert "gpus-per-task" not in options  # would hide GPUs that JAX counts
    assert options["signal"] == "TERM@120" and "requeue" in options
    assert options["open-mode"] == "append"  # a requeued job continues its log


def test_slurm_needs_a_workdir():
    done = run("slurm.sbatch", CONFIG, SLURM_JOB_ID="41")
    assert done.returncode == 1 and "--workdir=DIR is missing" in done.stderr


# tpu_pod.sh

# A fake Cloud TPU: the file `state` has the queued resource's state, `node` the node's; each worker
# is a home directory in which --command really runs.
GCLOUD = r"""
cloud=CLOUD
[[ "$*" != *--output-directory=* ]] || logs=$(grep -o -- '--output-directory=.*' <<<"$*")
logs=${logs%% --command=*} logs=${logs#*=}
for argument; do [[ $argument != --command=* ]] || command=${argument#--command=}; done
case "$*" in
  "storage ls gs://bucket") ;;
  "storage ls gs://bucket/run/report.json") test -e $cloud/report.json || exit 1 ;;
  *"queued-resources describe"*)
    [[ -e $cloud/state ]] || { echo "ERROR: NOT_FOUND: not there" >&2; exit 1; }
    echo "A new version is available" >&2
    cat $cloud/state
    [[ ! -e $cloud/next ]] || mv $cloud/next $cloud/state ;;
  *"tpu-vm describe"*) cat $cloud/node ;;
  *"queued-resources create"*)
    echo WAITING_FOR_RESOURCES >$cloud/state
    cat $cloud/after_create 2>/dev/null >$cloud/next || echo ACTIVE >$cloud/next
    echo READY >$cloud/node
    mkdir -p $cloud/worker{0,1} ;;
  *"queued-resources delete"*) rm -rf $cloud/state $cloud/next $cloud/worker* ;;
  *"tpu-vm scp"*) for worker in 0 1; do cp "$5" $cloud/worker$worker/simjax.tar.gz; done ;;
  *"tpu-vm ssh"*)
    for worker in 0 1; do
      env -u SIMJAX_CACHE -u JAX_COMPILATION_CACHE_DIR \
        HOME=$cloud/worker$worker WORKER=$worker bash -c "$command" \
        >"${logs:-$cloud}/$worker.log" 2>&1 &
      pids+=($!)
    done
    for pid in ${pids[@]}; do wait $pid || status=$?; done
    exit ${status:-0} ;;
  *) echo "unexpected: $*" >&2; exit 64 ;;
esac
"""
# On each worker: an installer that creates uv, which creates a Python, which plays simjax.
UV = r"""#!/bin/bash
case $1 in
  venv) mkdir -p ~/simjax-venv/bin && cp CLOUD/program ~/simjax-venv/bin/python ;;
  pip) test -e ~/simjax/pyproject.toml && test -e ~/simjax/configs/cifar10.py ;;
esac
"""
PLAYED = r"""#!/bin/bash
[[ $WORKER == 1 ]] || printf '%s\0' "$PWD" "$JAX_COMPILATION_CACHE_DIR" "$@" >>CLOUD/started
[[ $WORKER == 1 ]] || echo >>CLOUD/started
echo "worker $WORKER speaks"
"""
FINISHES = "touch CLOUD/report.json"
IS_PREEMPTED_ONCE = r"""
[[ $WORKER == 0 ]] || exit 0
if [[ -e CLOUD/checkpoint ]]; then touch CLOUD/report.json; exit 0; fi
touch CLOUD/checkpoint; echo SUSPENDED >CLOUD/state; exit ${1:-0}
"""
RUNTIME = "v2-alpha-tpuv5-lite"
POD = ("--name=pod", "--zone=z-a", "--type=v5litepod-16", f"--runtime={RUNTIME}")
WORKDIR = "--workdir=gs://bucket/run"


class Cloud:
    """A fake Google Cloud in a directory, which logs the script's calls."""

    def __init__(self, directory: Path, program: str):
        self.directory = directory
        installer = "cat >/dev/null; mkdir -p ~/.local/bin; cp CLOUD/uv ~/.local/bin/uv"
        bodies = {"gcloud": GCLOUD, "curl": "true", "sh": installer}
        bodies = {name: self._placed(body) for name, body in bodies.items()}
        self.path = fakes(directory, **bodies)
        executable(directory / "uv", self._placed(UV))
        executable(directory / "program", self._placed(PLAYED + program))

    def _placed(self, text: str) -> str:
        return text.replace("CLOUD", str(self.directory))

    def exists(self, state: str, node: str = "READY", then: str = "") -> "Cloud":
        """Adds a slice in this state, and in state `then` at the second look."""
        (self.directory / "state").write_text(f"{state}\n")
        (self.directory / "node").write_text(f"{node}\n")
        if then:
            (self.directory / "next").write_text(f"{then}\n")
        for worker in (0, 1):
            (self.directory / f"worker{worker}").mkdir()
        return self

    def launch(self, *flags: str, **environment: str) -> subprocess.CompletedProcess:
        logs = f"--logs={self.directory}/logs"
        own = (*POD, "--poll=0.05", "--attempts=4", logs, *flags)
        environment = {"PATH": self.path, "TMPDIR": str(self.directory)} | environment
        return run("tpu_pod.sh", *own, CONFIG, WORKDIR, ODD, **environment)

    def did(self) -> list[str]:
        """Verbs of the gcloud calls other than describe, in order."""
        mine = [call for call in calls(self.directory) if call[0] == "gcloud"]
        return [call[4] for call in mine if call[4:] and call[4] != "describe"]

    def started(self) -> list[list[str]]:
        """Working directory, compilation cache and arguments of each start on worker 0."""
        noted = (self.directory / "started").read_text().split("\0\n")[:-1]
        return [start.split("\0") for start in noted]


INSTALLED_AND_RUN = ["scp", "ssh", "ssh"]


def test_pod_creates_a_slice_and_runs_on_all_workers(tmp_path):
    cloud = Cloud(tmp_path, f"{FINISHES}; sleep 0.5")
    done = cloud.launch("--spot", JAX_COMPILATION_CACHE_DIR="gs://b/a cache")
    assert done.returncode == 0, done.stderr
    assert cloud.did() == ["create", *INSTALLED_AND_RUN]
    assert cloud.started() == [
        [f"{tmp_path}/worker0/simjax", "gs://b/a cache", *PROGRAM, WORKDIR, ODD]
    ]
    create = next(call for call in calls(tmp_path) if "create" in call)
    flags = {"--spot", "--zone=z-a", "--node-id=pod", "--accelerator-type=v5litepod-16"}
    assert flags | {f"--runtime-version={RUNTIME}"} < set(create)
    for worker in (0, 1):
        assert (tmp_path / f"logs/pod/1/{worker}.log").read_text() == f"worker {worker} speaks\n"
    assert "worker 0 speaks" in done.stdout  # followed
    assert "finished: gs://bucket/run/report.json" in done.stderr


def test_pod_reuses_a_slice(tmp_path):
    cloud = Cloud(tmp_path, FINISHES).exists("ACTIVE")
    assert cloud.launch().returncode == 0
    assert cloud.did() == INSTALLED_AND_RUN


def test_pod_waits_for_a_slice_that_is_in_the_queue(tmp_path):
    cloud = Cloud(tmp_path, FINISHES).exists("PROVISIONING", then="ACTIVE")
    assert cloud.launch().returncode == 0
    assert cloud.did() == INSTALLED_AND_RUN


@pytest.mark.parametrize(("state", "node"), [("SUSPENDED", "READY"), ("ACTIVE", "PREEMPTED")])
def test_pod_replaces_a_dead_slice(state, node, tmp_path):
    cloud = Cloud(tmp_path, FINISHES).exists(state, node)
    assert cloud.launch().returncode == 0
    assert cloud.did() == ["delete", "create", *INSTALLED_AND_RUN]


@pytest.mark.parametrize("status", [0, 1])  # saved; lost its peers
def test_pod_resumes_after_a_preemption(status, tmp_path):
    cloud = Cloud(tmp_path, IS_PREEMPTED_ONCE.replace("${1:-0}", str(status)))
    done = cloud.launch("--delete")
    assert done.returncode == 0, done.stderr
    once = ["create", *INSTALLED_AND_RUN]
    assert cloud.did() == [*once, "delete", *once, "delete"]
    first, second = cloud.started()
    assert first == second  # the same command
    assert (tmp_path / "logs/pod/2/0.log").exists()


def test_pod_stops_at_a_user_error(tmp_path):
    cloud = Cloud(tmp_path, "echo 'simjax: no such field'; exit 1")
    done = cloud.launch()
    assert done.returncode == 1 and "failed on a healthy slice" in done.stderr
    assert "simjax: no such field" in done.stderr  # the end of every worker's log
    assert cloud.did() == ["create", *INSTALLED_AND_RUN]


def test_pod_stops_when_the_installation_fails(tmp_path):
    cloud = Cloud(tmp_path, FINISHES)
    executable(tmp_path / "uv", "#!/bin/bash\nexit 2\n")
    assert cloud.launch().returncode == 1
    assert cloud.did() == ["create", "scp", "ssh"]


def test_pod_gives_up_after_the_attempts(tmp_path):
    cloud = Cloud(tmp_path, "exit 0")
    done = cloud.launch("--attempts=2")
    assert done.returncode == 1 and "not finished after 2 attempts" in done.stderr
    assert len(cloud.started()) == 2


def test_pod_gives_up_on_a_slice_that_cannot_be_created(tmp_path):
    cloud = Cloud(tmp_path, FINISHES)
    (tmp_path / "after_create").write_text("FAILED\n")
    done = cloud.launch("--attempts=2")
    assert done.returncode == 1 and "slice pod is FAILED" in done.stderr
    assert cloud.did() == ["create", "delete", "create"]


def test_pod_creates_nothing_for_a_finished_run(tmp_path):
    cloud = Cloud(tmp_path, FINISHES)
    (tmp_path / "report.json").touch()
    assert cloud.launch().returncode == 0
    assert cloud.did() == []


def test_pod_reconnects_to_a_running_program(tmp_path):
    slow = "sleep 1; echo 'worker still speaks'; touch CLOUD/report.json"
    cloud = Cloud(tmp_path, slow).exists("ACTIVE")
    own = (*POD, "--poll=0.1", f"--logs={tmp_path}/logs", CONFIG, WORKDIR)
    lost = subprocess.Popen(
        ["bash", str(LAUNCH / "tpu_pod.sh"), *own],
        env=os.environ | {"PATH": cloud.path, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for worker in (0, 1):
        _until(lambda w=worker: (tmp_path / f"logs/pod/1/{w}.log").read_text())
    os.killpg(lost.pid, signal.SIGKILL)  # the loop, gcloud and their connections
    lost.wait()
    (tmp_path / "worker0/simjax/mark").touch()
    done = cloud.launch()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs/pod/2/0.log").read_text() == "worker 0 speaks\nworker still speaks\n"
    assert len(cloud.started()) == 1
    assert (tmp_path / "worker0/simjax/mark").exists()  # the running code was not replaced


def _until(true, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail(f"not true within {seconds} s")


def test_pod_dry_run_prints_all_commands_and_calls_nothing(tmp_path):
    cloud = Cloud(tmp_path, FINISHES)
    done = cloud.launch("--dry-run", "--spot", "--project=p", "--create=--network=n", "--delete")
    assert done.returncode == 0 and not calls(tmp_path) and not (tmp_path / "logs").exists()
    create, bundle, copy, setup, _, start, report, delete = commands(done.stdout)
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    assert create[:5] == [*queued, "create"] and {"--spot", "--network=n"} < set(create)
    assert "simjax" in bundle and copy[4:6] == ["scp", f"{tmp_path}/simjax-pod.tar.gz"]
    for ssh in (setup, start):
        assert ssh[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
        assert {"--worker=all", "--zone=z-a", "--project=p"} < set(ssh)
    assert '"[tpu,gcs]"' in setup[-1]
    words = shlex.split(start[-1].replace("$(cat", "").replace("\\\n", " "), comments=False)
    first = words.index("simjax.main") - 1
    assert words[first : first + 5] == [*PROGRAM, WORKDIR, ODD]
    assert report == ["gcloud", "storage", "ls", "gs://bucket/run/report.json"]
    assert delete == [*queued, "delete", "pod", "--zone=z-a", "--project=p", "--force", "--quiet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONFIG, WORKDIR), "--name= is missing"),
        ((*POD, "--sppot", CONFIG, WORKDIR), "unknown argument --sppot"),
        ((*POD, CONFIG, "--workdir=runs/x"), "--workdir=runs/x must be in a bucket (gs://...)"),
        ((*POD, CONFIG, "--workdir=gs://other/run"), "gs://other cannot be read"),
    ],
)
def test_pod_refuses_bad_flags_before_creating_anything(arguments, message, tmp_path):
    cloud = Cloud(tmp_path, FINISHES)
    done = run("tpu_pod.sh", *arguments, PATH=cloud.path)
    assert done.returncode == 1 and message in done.stderr
    assert cloud.did() == []


def test_pod_reads_flags_from_the_environment(tmp_path):
    names = {"TPU_NAME": "n", "TPU_ZONE": "z", "TPU_TYPE": "t", "TPU_RUNTIME": "r"}
    done = run("tpu_pod.sh", "--dry-run", CONFIG, WORKDIR, TPU_PROJECT="p", **names)
    create = commands(done.stdout)[0]
    assert create[5:10] == ["n", "--node-id=n", "--zone=z", "--project=p", "--accelerator-type=t"]


# gke_jobset.yaml


@pytest.fixture(scope="module")
def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def pod_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_jobset_is_one_slice_with_one_pod_per_host(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    placement = jobset["metadata"]["annotations"]
    assert placement == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"}
    (slice_,) = jobset["spec"]["replicatedJobs"]
    assert set(slice_) == {"name", "replicas", "template"} and slice_["replicas"] == 1
    job, pod = slice_["template"]["spec"], pod_of(jobset)
    selector, (container,) = pod["nodeSelector"], pod["containers"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    chips = math.prod(map(int, selector["cloud.google.com/gke-tpu-topology"].split("x")))
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts == 4
    assert job["completionMode"] == "Indexed"


def test_jobset_does_not_count_restarts_after_interruptions(jobset):
    policy = jobset["spec"]["failurePolicy"]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = pod_of(jobset)["containers"]
    assert 0 < policy["maxRestarts"] <= 10
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert job["backoffLimit"] == 0
    evicted, saved = job["podFailurePolicy"]["rules"]
    assert evicted["action"] == saved["action"] == "FailJob"
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    codes = {"containerName": container["name"], "operator": "In", "values": [75]}
    assert saved["onExitCodes"] == codes
    assert pod_of(jobset)["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert pod_of(jobset)["terminationGracePeriodSeconds"] >= 60


def test_jobset_opens_the_ports_of_libtpu_and_jax(jobset):
    from jax._src.clusters import cloud_tpu_cluster  # the port is stated nowhere else

    (container,) = pod_of(jobset)["containers"]
    ports = [port["containerPort"] for port in container["ports"]]
    assert ports == [8471, int(cloud_tpu_cluster.coordinator_port)]


def test_jobset_placeholders_are_listed_in_the_readme(jobset):
    placeholders = set(re.findall(r"REPLACE_WITH_\w+", yaml.safe_dump(jobset)))
    listed = re.findall(r"^\| `(REPLACE_WITH_\w+)` \|", (LAUNCH / "README.md").read_text(), re.M)
    assert placeholders == set(listed) and len(listed) == 3


def jobset_container(jobset: dict, directory: Path, program: str) -> subprocess.Popen:
    """Starts the container's command; `python -m simjax.main` runs `program` instead."""
    (container,) = pod_of(jobset)["containers"]
    python = f'[[ "$1" == -m ]] || exec {sys.executable} "$@"\n{program}'
    path = fakes(directory, python=python)
    variables = {v["name"]: v["value"] for v in container["env"]} | {"WORKDIR": str(directory)}
    arguments = [a.replace("$(WORKDIR)", variables["WORKDIR"]) for a in container["args"]]
    return subprocess.Popen(
        [*container["command"], *arguments], env=os.environ | variables | {"PATH": path}
    )


@pytest.mark.parametrize(
    ("program", "status"),
    [("touch REPORT", 0), ("exit 0", 75), ("exit 1", 1), ("exit 134", 134)],
    ids=["finished", "saved", "mistake", "aborted"],
)
def test_jobset_container_exits_with_the_status_that_gke_needs(jobset, program, status, tmp_path):
    program = program.replace("REPORT", f"{tmp_path}/report.json")
    assert jobset_container(jobset, tmp_path, program).wait(timeout=20) == status
    assert calls(tmp_path)[0] == ["python", *PROGRAM, f"--workdir={tmp_path}"]


def test_jobset_container_forwards_sigterm_and_waits_for_the_checkpoint(jobset, tmp_path):
    saves = f"trap 'sleep 0.5; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/ready"
    container = jobset_container(jobset, tmp_path, f"{saves}; while :; do sleep 0.05; done")
    _until((tmp_path / "ready").exists)
    container.send_signal(signal.SIGTERM)
    assert container.wait(timeout=20) == 75
    assert (tmp_path / "saved").exists()
