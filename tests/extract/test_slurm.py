"""The job scripts of docs/slurm do what they say, with stand-ins for SLURM's own programs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from extract.noted import NAME, Notes
from small import tree_of

SCRIPTS = Path(__file__).parents[2] / "docs" / "slurm"

STUBS = {
    "kdcache": 'exec {python} -m kdcache_cli "$@"',
    "scontrol": 'echo "$@" >> {folder}/scontrol; [ "$1" != show ] || printf "n1\\nn2\\n"',
    # Runs here what SLURM runs on its nodes.
    "srun": 'echo "$@" >> {folder}/srun; while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "hostname": "echo 192.0.2.7 fe80::1",
    "ray": 'echo "$@" >> {folder}/ray; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
}


@pytest.fixture
def bin_folder(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STUBS.items():
        stub = folder / name
        stub.write_text("#!/bin/bash\n" + body.format(python=sys.executable, folder=tmp_path))
        stub.chmod(0o755)
    return folder


def start(script, bin_folder, environment, *arguments):
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [SCRIPTS / script, *map(str, arguments)],
        env=os.environ | environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_script_is_bash(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.dist
@pytest.mark.slow
def test_array_shares_the_work_and_queues_a_task_again_whose_time_is_up(
    bin_folder, tiny_images, tmp_path
):
    (tmp_path / "notes").mkdir()
    notes = Notes(tmp_path / "notes")
    notes.hold()

    def task(number, out):
        slurm = {
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_ARRAY_TASK_ID": number,
            "SLURM_ARRAY_TASK_MIN": "3",
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }
        return start(
            "array.sh", bin_folder, notes.environment() | slurm,
            "--teacher", NAME, "--data", tiny_images, "--out", out, "--views", 2,
            "--batch-size", 8, "--workers", 0,
        )  # fmt: skip

    first, second = task("3", tmp_path / "c"), task("4", tmp_path / "c")
    notes.await_pids(2)
    assert set(notes.count("begin")) == {0, 6}  # of twelve pieces: they begin apart
    second.send_signal(signal.SIGUSR1)
    _, errors = second.communicate()
    assert second.returncode == 0, errors
    assert (tmp_path / "scontrol").read_text() == "requeue 77_4\n"
    notes.go_on()
    said, errors = first.communicate()
    assert first.returncode == 0, errors
    assert notes.count("end").total() == 12
    again = task("4", tmp_path / "c")  # as SLURM starts it again, with nothing left to do
    assert again.communicate()[0] == said
    alone = task("3", tmp_path / "alone")
    assert alone.communicate()[0] == said
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "alone")


SLURM_JOB = {
    "SLURM_JOB_ID": "78",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_GPUS_ON_NODE": "4",
}


def test_ray_starts_on_all_nodes_and_the_command_on_one(bin_folder, tmp_path):
    (bin_folder / "kdcache").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"")
    job = start("ray.sh", bin_folder, SLURM_JOB, "--out", "my cache", "--views", 50)
    said, errors = job.communicate()
    assert job.returncode == 0, errors
    assert said.splitlines() == ["extract", "--on", "ray", "--out", "my cache", "--views", "50"]
    assert (tmp_path / "scontrol").read_text() == "show hostnames n[1-2]\n"
    ask, run = (tmp_path / "srun").read_text().splitlines()
    assert ask == "--nodes=1 --ntasks=1 --nodelist=n1 hostname --ip-address"
    assert run.startswith("--nodes=2 --ntasks-per-node=1 --no-kill ray symmetric-run ")
    before, _ = (tmp_path / "ray").read_text().split(" -- ")
    assert before == "symmetric-run --address 192.0.2.7:6379 --num-cpus 16 --num-gpus 4"


def test_ray_job_whose_time_is_up_is_queued_again(bin_folder, tmp_path):
    (bin_folder / "kdcache").write_text(f"#!/bin/bash\ntouch {tmp_path}/begun\nexec sleep 60\n")
    job = start("ray.sh", bin_folder, SLURM_JOB)
    while not (tmp_path / "begun").exists():
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    job.communicate()
    assert job.returncode == 0
    assert (tmp_path / "scontrol").read_text().endswith("requeue 78\n")


@pytest.mark.ray
def test_ray_knows_what_the_script_gives_it():
    symmetric = pytest.importorskip("ray.scripts.symmetric_run", reason="needs Ray")
    given = ["--address", "192.0.2.7:6379", "--num-cpus", "16", "--num-gpus", "4"]
    kept = symmetric.curate_and_validate_ray_start_args(given)
    assert kept == ["--num-cpus", "16", "--num-gpus", "4"]
