"""`torchrun ... -m kdcache_cli train` as a cluster treats it: a process is killed, then all are
asked to stop, and other machines go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import make_cache, recipe_for, run

from kdcache.train import read_metrics

ROOT = Path(__file__).parents[2]
EPOCHS = 12


def recipe():
    return recipe_for(
        "simreg", train={"lr": 1e-4, "epochs": EPOCHS}, run={"checkpoint_every_s": 0.0}
    )


def write(tables, path):
    """A recipe as a file."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {toml(value)}" for key, value in values.items() if value is not None]
    path.write_text("\n".join(lines))


def toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value)


def start(data, cache, config, out):
    """Two processes under torchrun, which starts them once more when one is gone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "-m", "kdcache_cli", "train", "--config", str(config)]
    command += ["--data", str(data), "--cache", str(cache), "--out", str(out), "--workers", "0"]
    command += ["--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (out.parent / "said").open("w") as said:
        return subprocess.Popen(command, env=environment, stderr=said)


def steps_of(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_steps(out, count, agent):
    """Until the log has so many lines more."""
    before, deadline = steps_of(out), time.monotonic() + 300
    while steps_of(out) < before + count:
        assert agent.poll() is None, (out.parent / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def process_of(agent, rank):
    """The process of a rank, by what torchrun told it."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int((path.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
            told = path.read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == agent.pid and f"RANK={rank}".encode() in told:
            return int(path.parent.name)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_run_outlives_a_kill_a_restart_a_stop_and_a_change_of_the_world(
    tiny_images, tiny_weights, tmp_path
):
    cache, config, out = tmp_path / "c", tmp_path / "simreg.toml", tmp_path / "run"
    make_cache(tiny_images, tiny_weights, cache)
    write(recipe().to_dict(), config)
    agent = start(tiny_images, cache, config, out)
    wait_for_steps(out, 6, agent)
    os.kill(process_of(agent, 1), signal.SIGKILL)  # torchrun starts both again
    wait_for_steps(out, 4, agent)
    agent.send_signal(signal.SIGTERM)
    agent.wait(timeout=120)
    # What the first process says of the death, torchrun may cut short: see tests/distributed.
    said = (tmp_path / "said").read_text()
    assert re.search(r"stopped at step \d+; the same command goes on", said), said
    stopped = steps_of(out)
    assert 6 < stopped < EPOCHS * 6
    outcome = run(recipe(), tiny_images, out, cache)
    whole = run(recipe(), tiny_images, tmp_path / "whole", cache)
    assert outcome.finished
    ours, alone = (
        [r["loss"] for r in read_metrics(folder)] for folder in (out, tmp_path / "whole")
    )
    assert whole.finished
    assert ours == pytest.approx(alone, rel=1e-5)
