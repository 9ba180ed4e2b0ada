"""Time and memory as a set grows: index, extract, open, train start, neighbours.

For every number of rows N a fresh process makes N small JPEGs (32 px, all different) and goes the
whole way with them: the folder is opened and indexed, a cache is extracted (one view, a teacher
that averages pixels: what is measured is everything but the teacher), opened, a run of SEED is
prepared up to its first batch, and the kNN graph is computed (IVF). Beside each step stands the
time for a row, which should not rise with N, and the resident memory after it.

    python benchmarks/growth.py FOLDER --rows 10000,100000 --json growth.json
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from record import describe_machine, processor
from torch import Tensor, nn

from kdcache.derive import run_neighbours
from kdcache.extract import Extraction, run_extraction
from kdcache.images import index_images, open_images
from kdcache.progress import silent_bar
from kdcache.recipe import load_recipe
from kdcache.store import open_cache
from kdcache.teachers import Teacher, own_teacher
from kdcache.train.lesson import lesson_from
from kdcache.train.loop import build_queues

SIDE = 32
DIM = 64
IN_A_FOLDER = 1000
CPU = torch.device("cpu")


class Averages(nn.Module):
    """A teacher that costs nothing: means of a grid of patches, by a fixed matrix."""

    num_features = DIM

    def __init__(self) -> None:
        super().__init__()
        grid = 4
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.mix = nn.Linear(3 * grid * grid, DIM)

    def forward(self, images: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.pool(images).flatten(1))
        return mixed


def averages() -> Teacher:
    """The teacher of averages."""
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    return own_teacher("averages", Averages(), image_size=SIDE, mean=half, std=half)


def make_images(folder: Path, count: int) -> None:
    """So many JPEGs, told apart by bytes behind their end."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (100, 8, 8, 3), np.uint8)
    blurred = [cv2.resize(picture, (SIDE, SIDE)) for picture in pictures]
    encoded = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in blurred]
    for number in range(count):
        place = folder / f"{number // IN_A_FOLDER:04}" / f"{number:07}.jpg"
        if number % IN_A_FOLDER == 0:
            place.parent.mkdir(parents=True)
        place.write_bytes(encoded[number % len(encoded)] + number.to_bytes(8, "big"))


def resident_mb() -> dict[str, float]:
    """This process's memory now: its own, and that of files it has mapped."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "own": int(fields["RssAnon"].split()[0]) / 1024,
        "mapped": int(fields["RssFile"].split()[0]) / 1024,
    }


def grow(folder: Path, num_rows: int) -> list[dict[str, Any]]:
    """Every step with so many rows."""
    data, out = folder / "images", folder / "cache.zarr"
    make_images(data, num_rows)
    steps: list[dict[str, Any]] = []
    started = time.perf_counter()

    def done(name: str) -> None:
        nonlocal started
        took = time.perf_counter() - started
        steps.append({"step": name, "rows": num_rows, "s": took, "mb": resident_mb()})
        started = time.perf_counter()

    images = open_images(data)
    done("list the folder")
    index_images(images)
    done("index it (read, hash)")
    run_extraction(
        images, averages(), out, Extraction(num_views=1, precision="fp32", batch_size=256),
        device=CPU, workers=0, bar=silent_bar,
    )  # fmt: skip
    done("extract (index, render, write, seal)")
    cache = open_cache(out)
    cache.slab("feature", 0)
    done("open and read a view")
    run_neighbours(cache, k=5, array=None, index="ivf", nprobe=16, bar=silent_bar)
    done("neighbours (IVF)")
    cache = open_cache(out)
    queue = min(65_536, num_rows // 4)
    overrides = [f"method.queue={queue}", "method.target=feature", f"student.image_size={SIDE}"]
    recipe = load_recipe(method="seed", student="test_resnet", overrides=overrides)
    lesson = lesson_from([cache], recipe, images, device=CPU, tell=print, bar=silent_bar)
    build_queues(recipe, lesson, 0)
    done("train start (match, slab, queue)")
    lesson.images[0]
    done("first batch (256 views)")
    return steps


def table(steps: list[dict[str, Any]]) -> str:
    """A row a step, a column a number of rows."""
    sizes = sorted({step["rows"] for step in steps})
    lines = ["| step | " + " | ".join(f"N = {size:,}" for size in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for name in dict.fromkeys(step["step"] for step in steps):
        cells = []
        for size in sizes:
            (step,) = (s for s in steps if s["step"] == name and s["rows"] == size)
            each = 1e6 * step["s"] / size
            memory = f"{step['mb']['own']:,.0f} + {step['mb']['mapped']:,.0f} MB"
            cells.append(f"{step['s']:,.2f} s, {each:,.1f} us a row; {memory}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, each size in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="for the images and caches, removed afterwards")
    parser.add_argument("--rows", default="10000,100000", help="numbers of rows, by commas")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(grow(args.folder, args.one)))
        return
    steps: list[dict[str, Any]] = []
    for num_rows in map(int, args.rows.split(",")):
        folder = args.folder / "benchmark-growth"
        command = [sys.executable, __file__, str(folder), "--one", str(num_rows)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        steps += json.loads(done.stdout)
    print(table(steps))
    if args.json:
        machine = describe_machine(processor=processor(), torch=torch.__version__)
        args.json.write_text(json.dumps({"steps": steps, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
