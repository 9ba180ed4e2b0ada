"""How long it takes until something happens: fresh processes, from the command to its first sign.

* `kdcache --help`: until the process has ended;
* importing torch, torchvision, timm and TensorBoard, which every training program does;
* `kdcache train`: until the first step's line is in `metrics.jsonl`;
* the same after an interruption (SIGKILL): until the first new step's line is there.

    python benchmarks/start_up.py --json start_up.json
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import timm
import torch
from record import describe_machine, in_words, processor, spread

from kdcache.extract import Extraction, run_extraction
from kdcache.images import open_images
from kdcache.progress import silent_bar
from kdcache.table import format_table
from kdcache.teachers import load_teacher

KDCACHE = [sys.executable, "-m", "kdcache_cli"]
GOALS = {"help": 0.5, "resume": 15.0}
_TOO_LONG_S = 300.0


def make_inputs(folder: Path, num_images: int) -> None:
    """Small pictures, a small teacher, and the cache of what it says of them."""
    rng = np.random.default_rng(0)
    (folder / "images" / "all").mkdir(parents=True)
    for number in range(num_images):
        picture = rng.integers(0, 256, (32, 32, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / "all" / f"{number:06}.jpg"), picture)
    weights = folder / "teacher.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    run_extraction(
        open_images(folder / "images"),
        load_teacher("timm:test_resnet", weights=weights, image_size=32),
        folder / "cache",
        Extraction(num_views=2, precision="fp32"),
        device=torch.device("cpu"),
        workers=0,
        bar=silent_bar,
    )


class Took(NamedTuple):
    """Seconds until the sign came."""

    wall: float
    cpu: float
    """Of the process itself: what a machine with nothing else to do would need, about."""


def seconds_of(command: list[str]) -> Took:
    """What a whole process takes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(time.perf_counter() - started, cpu)


def cpu_so_far(pid: int) -> float:
    """Seconds of a CPU that a running process has used, its children not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until_step(folder: Path, run: Path, args: argparse.Namespace) -> Took:
    """Seconds from the launch of a training until a step more than before is logged; then it is
    killed."""
    metrics = run / "metrics.jsonl"
    before = num_lines(metrics)
    command = [
        *KDCACHE, "train", "--data", str(folder / "images"), "--cache", str(folder / "cache"),
        "--out", str(run), "--method", "simreg", "--student", args.student, "--device", args.device,
        "--workers", str(args.workers), "--set", "train.batch_size=8", "--set", "run.log_every=1",
        "--set", f"student.image_size={args.size}", "--set", "run.checkpoint_every_s=0",
        "--set", "train.epochs=1000",
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        # A resumed run takes back the lines after its checkpoint before it adds its own.
        while num_lines(metrics) <= before:
            if process.poll() is not None or time.perf_counter() - started > _TOO_LONG_S:
                assert process.stderr is not None
                raise SystemExit(f"no step came: {process.stderr.read().decode()[-2000:]}")
            time.sleep(0.01)
        return Took(time.perf_counter() - started, cpu_so_far(process.pid))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def num_lines(path: Path) -> int:
    """Whole lines of a file; none where there is no file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All figures, in seconds."""
    make_inputs(folder, args.images)
    imports = [sys.executable, "-c", "import torch, torchvision, timm, torch.utils.tensorboard"]
    times: dict[str, list[Took]] = {}
    for turn in range(args.rounds):
        run = folder / f"run{turn}"
        for name, work in (
            ("python", lambda: seconds_of([sys.executable, "-c", ""])),
            ("help", lambda: seconds_of([*KDCACHE, "--help"])),
            ("imports", lambda: seconds_of(imports)),
            ("launch", lambda run=run: until_step(folder, run, args)),
            ("resume", lambda run=run: until_step(folder, run, args)),
        ):
            times.setdefault(name, []).append(work())
    return {
        "seconds": {name: spread([took.wall for took in all_of]) for name, all_of in times.items()},
        "cpu_s": {name: spread([took.cpu for took in all_of]) for name, all_of in times.items()},
        "goals": GOALS,
        "settings": {key: str(value) for key, value in vars(args).items()},
        "machine": describe_machine(processor=processor(), torch=torch.__version__),
    }


WHAT = {
    "python": "an empty Python",
    "help": "kdcache --help",
    "imports": "importing torch, torchvision, timm, TensorBoard alone",
    "launch": "kdcache train, to the first step",
    "resume": "the same after SIGKILL, to the first new step",
}


def table(result: dict[str, Any]) -> str:
    """The figures for people: medians, quartiles in brackets."""
    rows = []
    for name, figures in result["seconds"].items():
        goal = f"< {GOALS[name]:g}" if name in GOALS else ""
        cpu = f"{result['cpu_s'][name]['median']:.2f}"
        rows.append([WHAT[name], in_words(figures), cpu, goal])
    machine = result["machine"]
    return (
        format_table(["from the command", "seconds", "of a CPU", "goal"], rows)
        + f"\n{machine['processor']}, {machine['cores']} cores, load "
        f"{machine['load_average'][0]:.1f}, {machine['date']}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--student", default="resnet18", help="a timm model")
    parser.add_argument("--size", type=int, default=32, help="side of the views in pixels")
    parser.add_argument("--workers", type=int, default=1, help="rendering processes")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="start-up-") as folder:
        result = measure(Path(folder), args)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
