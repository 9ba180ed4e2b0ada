"""What one decode for several views, and for several students, saves where decoding binds.

Photographs of DATA, a tiny teacher's cache of four views, a tiny student by SimReg: so the time is
that of reading and decoding. All variants train by turns in one process; what is compared is the
time of the training loop for the same number of views within a turn.

    python benchmarks/views_per_decode.py DATA --json views_per_decode.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from record import describe_machine, in_words, processor, spread

from kdcache.extract import Extraction, run_extraction
from kdcache.images import ImageSet, open_images
from kdcache.progress import Progress, silent_bar
from kdcache.recipe import Recipe, build_recipe
from kdcache.store import open_cache
from kdcache.teachers import load_teacher
from kdcache.train import Job, run_together
from kdcache.train.data import RowImages

SIDE, VIEWS, BATCH = 64, 4, 32
CPU = torch.device("cpu")
REPEATS = (1, 2, 4)


class Clock:
    """A progress bar that takes the time of the training loop."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self, title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
        """Time from the bar's start to the last images."""
        start = time.perf_counter()

        def progress(_: int) -> None:
            if title.startswith("train"):
                self.seconds = time.perf_counter() - start

        yield progress


def some_images(data: Path, count: int) -> ImageSet:
    """`count` images of a folder, evenly spread over it."""
    images = open_images(data)
    places = np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64)
    return RowImages(
        source=images.source,
        paths=[images.paths[place] for place in places],
        labels=images.labels[places],
        classes=images.classes,
        images=images,
        places=places,
    )


def make_cache(images: ImageSet, folder: Path, workers: int) -> Path:
    """Four views of each image, as a teacher of random weights sees them."""
    weights = folder / "teacher.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    teacher = load_teacher("timm:test_resnet", weights=weights, image_size=SIDE)
    run_extraction(
        images, teacher, folder / "cache.zarr",
        Extraction(num_views=VIEWS, precision="fp32"), device=CPU, workers=workers, bar=silent_bar,
    )  # fmt: skip
    return folder / "cache.zarr"


def recipe(repeats: int = 1) -> Recipe:
    """SimReg, every view once."""
    return build_recipe(
        {
            "method": {"name": "simreg"},
            "student": {"name": "test_resnet", "image_size": SIDE},
            "train": {"epochs": VIEWS, "batch_size": BATCH, "repeats": repeats},
            "run": {"log_every": 1000},
        }
    )


def loop_s(recipes: list[Recipe], images: ImageSet, cache: Path, workers: int) -> float:
    """Seconds that the training loop of these students side by side takes."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        jobs = [Job(r, Path(out) / str(i), [open_cache(cache)]) for i, r in enumerate(recipes)]
        run_together(jobs, images, device=CPU, workers=workers, bar=clock, tell=str)
    return clock.seconds


def measure(data: Path, count: int, rounds: int, workers: int) -> dict[str, Any]:
    """Times of all variants, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        images = some_images(data, count)
        cache = make_cache(images, Path(folder), workers)
        turns: list[dict[str, float]] = []
        for _ in range(rounds):
            turn = {f"repeats {n}": loop_s([recipe(n)], images, cache, workers) for n in REPEATS}
            turn["another student after"] = loop_s([recipe()], images, cache, workers)
            turn["two students together"] = loop_s([recipe()] * 2, images, cache, workers)
            turns.append(turn)
    ratios = {
        f"repeats {n}": [turn["repeats 1"] / turn[f"repeats {n}"] for turn in turns]
        for n in REPEATS[1:]
    }
    ratios["two students together"] = [
        (turn["repeats 1"] + turn["another student after"]) / turn["two students together"]
        for turn in turns
    ]
    return {
        "machine": describe_machine(processor=processor(), torch=torch.__version__),
        "images": len(images),
        "views": VIEWS,
        "side": SIDE,
        "workers": workers,
        "seconds": {name: [turn[name] for turn in turns] for name in turns[0]},
        "times_faster": {name: spread(values) for name, values in ratios.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The figures, for a person."""
    lines = ["| variant | loop s | times as fast |", "|---|---|---|"]
    for name, seconds in result["seconds"].items():
        faster = result["times_faster"].get(name)
        words = in_words(faster) if faster else ""
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {words} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=192, help="how many of them")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all variants")
    parser.add_argument("--workers", type=int, default=0, help="processes that render")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    result = measure(args.data, args.images, args.rounds, args.workers)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
