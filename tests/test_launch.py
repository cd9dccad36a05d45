"""The launch scripts: the commands they print, what they refuse, and that quoting survives."""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
TPU = ("--name=t1", "--zone=us-west4-a")
RUN = ("run", *TPU, "--config=configs/worms.py:smoke", "--workdir=gs://bucket/run 1")
NOTE = '--config.note=it\'s 5 $HOME; "x"'  # all that a shell would like to eat


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def launch(tmp_path):
    """Run a script from an empty directory, with a PATH of a few tools and of what a test adds."""
    tools, here, temporary = tmp_path / "bin", tmp_path / "here", tmp_path / "tmp"
    for folder in (tools, here, temporary):
        folder.mkdir()
    for tool in ("bash", "dirname", "git", "mkdir", "sed"):
        (tools / tool).symlink_to(shutil.which(tool))

    def run(script, *arguments, folder=LAUNCH, path="", **variables):
        environment = {"PATH": f"{tools}{path}", "TMPDIR": str(temporary), **variables}
        command = [str(folder / script), *arguments]
        return subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, timeout=10
        )

    run.tools, run.here, run.temporary = tools, here, temporary
    return run


def printed(result):
    """The commands of a dry run, each as the list of words that a shell would make of its line."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def gcloud(*words):
    return ["gcloud", "compute", "tpus", *words, "--zone=us-west4-a"]


def remote_script(command):
    """What an ssh command runs on each worker."""
    assert command[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "t1", "--worker=all"]
    assert command[-1] == "--zone=us-west4-a"
    assert command[7].startswith("--command=set -e; ")
    return command[7].removeprefix("--command=")


@pytest.mark.parametrize("script", ["local.sh", "tpu_vm.sh"])
def test_script_is_executable_and_shellcheck_clean(script):
    assert os.access(LAUNCH / script, os.X_OK)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(["shellcheck", LAUNCH / script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["local.sh", "tpu_vm.sh"])
def test_help_prints_the_usage_and_no_code(launch, script):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert f"launch/{script}" in result.stdout and "--dry-run" in result.stdout
    assert "pipefail" not in result.stdout


def test_local_dry_run_prints_all_three_commands_and_makes_nothing(launch):
    result = launch("local.sh", "--config=configs/worms.py", "--venv=my env", "--dry-run", NOTE)
    python = "my env/bin/python"
    assert printed(result) == [
        ["python3", "-m", "venv", "my env"],
        [python, "-m", "pip", "install", "-e", str(LAUNCH.parent)],
        [python, "-m", "deformgan.main", "--config=configs/worms.py", NOTE],
    ]
    assert not list(launch.here.iterdir())


@pytest.mark.parametrize(
    ("header", "extra"),
    [
        ("| NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: 13.0 |", "[cuda13]"),
        ("| NVIDIA-SMI 550.54.15   Driver Version: 550.54.15   CUDA Version: 12.4 |", "[cuda12]"),
        ("NVIDIA-SMI has failed: couldn't communicate with the NVIDIA driver", ""),
    ],
)
def test_local_installs_the_extra_of_the_cuda_that_nvidia_smi_names(launch, header, extra):
    executable(launch.tools / "nvidia-smi", f'echo "{header}"')
    result = launch("local.sh", "--venv=env", "--config=c.py", "--dry-run")
    assert printed(result)[1][-1] == f"{LAUNCH.parent}{extra}"
    assert ("installing for CPU" in result.stderr) == (not extra)


def test_local_runs_only_the_program_when_it_is_installed(launch):
    """A stub python answers `pip show`, so nothing is made or installed; -- passes on the rest."""
    executable(launch.here / "env/bin/pip", "exit 1")
    executable(launch.here / "env/bin/python", 'printf "%s\\n" "$@" >>calls; exit 0')
    arguments = ("--venv=env", "--config=c.py", NOTE, "--", "--dry-run")
    assert launch("local.sh", *arguments).returncode == 0
    probe = ["-I", "-m", "pip", "show", "--quiet", "deformgan"]
    program = ["-m", "deformgan.main", "--config=c.py", NOTE, "--dry-run"]
    assert (launch.here / "calls").read_text().splitlines() == probe + program


def test_local_returns_the_exit_status_of_the_program(launch):
    executable(launch.here / "env/bin/pip", "exit 1")
    executable(launch.here / "env/bin/python", '[[ "$*" != *deformgan.main* ]] || exit 7')
    assert launch("local.sh", "--venv=env", "--config=c.py").returncode == 7


@pytest.mark.parametrize(
    ("arguments", "accelerator", "runtime", "rest"),
    [
        ([], "v5litepod-8", "v2-alpha-tpuv5-lite", []),
        (["--accelerator=v6e-16", "--spot"], "v6e-16", "v2-alpha-tpuv6e", ["--spot"]),
        (["--accelerator=v5p-8"], "v5p-8", "v2-alpha-tpuv5", []),
        (["--accelerator=v4-8"], "v4-8", "tpu-ubuntu2204-base", []),
        (["--accelerator=v4-8", "--runtime=mine"], "v4-8", "mine", []),
    ],
)
def test_tpu_create(launch, arguments, accelerator, runtime, rest):
    """Each generation gets its runtime, and flags unknown to the script go to gcloud."""
    options = ["--node-id=t1", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"]
    result = launch("tpu_vm.sh", "create", *TPU, "--dry-run", *arguments)
    assert printed(result) == [gcloud("queued-resources", "create", "t1", *options, *rest)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("status", ["queued-resources", "describe", "t1", "--format=yaml(state)"]),
        ("delete", ["queued-resources", "delete", "t1", "--force", "--quiet"]),
    ],
)
def test_tpu_status_and_delete(launch, command, words):
    result = launch("tpu_vm.sh", command, *TPU, "--project=my project", "--dry-run")
    assert printed(result) == [[*gcloud(*words), "--project=my project"]]


def test_tpu_install_sends_the_last_commit_to_all_workers_and_installs_it(launch):
    archive, copy, install = printed(launch("tpu_vm.sh", "install", *TPU, "--dry-run"))
    tarball = f"{launch.temporary}/deformgan-t1.tar.gz"
    assert archive == ["git", "-C", f"{LAUNCH}/..", "archive", f"--output={tarball}", "HEAD"]
    assert copy == gcloud("tpu-vm", "scp", tarball, "t1:deformgan.tar.gz", "--worker=all")
    steps = remote_script(install).split("; ")
    assert "tar -xzf ../deformgan.tar.gz -C src" in steps
    assert "python3 -m uv venv --seed --allow-existing --python=3.12 venv" in steps
    assert steps[-1] == 'venv/bin/pip install -e "./src[tpu,gcs]"'
    assert not list(launch.temporary.iterdir())


def test_tpu_install_refuses_uncommitted_changes(launch, tmp_path):
    """Otherwise the workers would silently run older code than the one on the screen."""
    repository = tmp_path / "repository"
    shutil.copytree(LAUNCH, repository / "launch")
    executable(launch.tools / "gcloud", "echo called")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *command], cwd=repository, check=True)

    clean = launch("tpu_vm.sh", "install", *TPU, folder=repository / "launch")
    assert clean.returncode == 0 and clean.stdout.count("called") == 2
    assert (launch.temporary / "deformgan-t1.tar.gz").stat().st_size > 0
    (repository / "launch/local.sh").write_text("changed")
    dirty = launch("tpu_vm.sh", "install", *TPU, folder=repository / "launch")
    assert dirty.returncode == 2 and "commit first" in dirty.stderr and not dirty.stdout


def test_tpu_run_starts_the_program_detached_on_all_workers(launch):
    (command,) = printed(launch("tpu_vm.sh", *RUN, "--dry-run", NOTE))
    _, nohup, program = remote_script(command).partition("; nohup ")
    assert nohup and program.endswith(" & echo $! >../pid")
    assert shlex.split(program.removesuffix(" & echo $! >../pid")) == [
        *("flock", "-nF", "../lock", "../venv/bin/python", "-m", "deformgan.main"),
        *("--config=configs/worms.py:smoke", "--workdir=gs://bucket/run 1", NOTE),
    ]


@pytest.mark.skipif(not shutil.which("flock"), reason="flock, which every TPU VM has, is missing")
def test_tpu_run_survives_the_ssh_is_not_doubled_and_stops(launch, tmp_path):
    """A stub gcloud runs the remote command in a local folder, whose python records and waits."""
    worker = tmp_path / "worker"
    (worker / "deformgan/src").mkdir(parents=True)
    executable(
        launch.tools / "gcloud",
        'for word; do [[ $word != --command=* ]] || exec bash -c "cd $WORKER; ${word#*=}"; done',
    )
    executable(
        worker / "deformgan/venv/bin/python",
        'printf "%s\\n" "$@" >"$WORKER/writing"; mv "$WORKER/writing" "$WORKER/argv"; exec sleep 9',
    )
    system = {"path": f":{os.environ['PATH']}", "WORKER": str(worker)}

    first = launch("tpu_vm.sh", *RUN, NOTE, **system)  # returns while the program still runs
    try:
        assert first.returncode == 0, first.stderr
        deadline = time.monotonic() + 5
        while not (worker / "argv").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (worker / "argv").read_text().splitlines() == [
            *("-m", "deformgan.main", "--config=configs/worms.py:smoke"),
            *("--workdir=gs://bucket/run 1", NOTE),
        ]
        second = launch("tpu_vm.sh", *RUN, **system)
        assert second.returncode == 1 and "already running" in second.stderr
    finally:
        stop = launch("tpu_vm.sh", "stop", *TPU, **system)
    assert stop.returncode == 0 and "not running" not in stop.stdout
    while "not running" not in launch("tpu_vm.sh", "stop", *TPU, **system).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_tpu_logs_fetches_one_file_from_each_worker(launch):
    """The dry run cannot ask for the number of workers, so it stands for the first one."""
    count = gcloud("tpu-vm", "describe", "t1", "--format=value(networkEndpoints.len())")
    make = ["mkdir", "-p", "logs/t1"]

    def fetch(i):
        target = f"logs/t1/worker{i}.log"
        return gcloud("tpu-vm", "scp", "t1:deformgan/log", target, f"--worker={i}")

    assert printed(launch("tpu_vm.sh", "logs", *TPU, "--dry-run")) == [count, make, fetch(0)]
    assert not list(launch.here.iterdir())

    executable(launch.tools / "gcloud", 'echo gcloud "$@" >>calls; [[ $4 != describe ]] || echo 3')
    assert launch("tpu_vm.sh", "logs", *TPU).returncode == 0
    calls = [line.split() for line in (launch.here / "calls").read_text().splitlines()]
    assert calls == [count, fetch(0), fetch(1), fetch(2)]
    assert (launch.here / "logs/t1").is_dir()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("local.sh --workdir=runs/a", "--config"),
        ("tpu_vm.sh create --zone=z", "--name"),
        ("tpu_vm.sh delete --name=t1", "--zone"),
        ("tpu_vm.sh run --name=t1 --zone=z --workdir=gs://b/a", "--config"),
        ("tpu_vm.sh run --name=t1 --zone=z --config=c.py", "--workdir"),
        ("tpu_vm.sh stop --name=t1 --zone=z --config.seed=1", "--config.seed=1"),
        ("tpu_vm.sh start --name=t1 --zone=z", "start"),
    ],
)
def test_a_missing_or_unknown_argument_exits_2_and_is_named(launch, command, named):
    result = launch(*command.split(), "--dry-run")
    assert result.returncode == 2 and not result.stdout
    assert named in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("workdir", ["runs/a", "/data/a", "gs://"])
def test_tpu_run_refuses_a_workdir_that_is_not_in_a_bucket(launch, workdir):
    result = launch("tpu_vm.sh", *RUN, f"--workdir={workdir}", "--dry-run")
    assert result.returncode == 2 and not result.stdout
    assert "--workdir must be gs://" in result.stderr and result.stderr.count("\n") == 1


def test_tpu_without_gcloud_exits_2_with_one_line(launch):
    result = launch("tpu_vm.sh", "status", *TPU)
    assert result.returncode == 2
    assert "gcloud is missing" in result.stderr and result.stderr.count("\n") == 1
