"""What a cache saves: an epoch with targets looked up beside one with the teacher live.

For each teacher, method and student a real extraction and real training runs (`kdcache.train`) of a
few steps, cached and live by turns in one process; then the break-even epoch: extraction over what
an epoch saves. Beside each figure stands what `kdcache plan` foretells, and its error. The weights
of the teachers are random, which changes nothing of the time.

    python benchmarks/offline_online.py                 # photographs, 64 px, a CPU
    python benchmarks/offline_online.py --data DIR --size 224 --batch 256 --workers 8
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from record import describe_machine, in_words, photographs, processor, spread

from kdcache.cores import available_cores
from kdcache.extract import Extraction, run_extraction
from kdcache.images import ImageSet, open_images, take_rows
from kdcache.methods import get_method
from kdcache.plan import Machines, Plan, ask, make_plan, measure
from kdcache.progress import silent_bar
from kdcache.recipe import Recipe, build_recipe
from kdcache.store import open_cache
from kdcache.table import format_table
from kdcache.teachers import load_teacher
from kdcache.train import Online, read_metrics, run_training

TEACHERS = {"r50": "resnet50", "r152": "resnet152"}
HEAD_DIM = 128


def make_weights(model: str, folder: Path) -> Path:
    """A checkpoint of random weights with MoCo's head of two layers."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=0)
    width = network.num_features
    head = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, HEAD_DIM)
    )
    path = folder / f"{model}.pth"
    torch.save(
        {**network.state_dict(), **{f"fc.{k}": v for k, v in head.state_dict().items()}}, path
    )
    return path


def make_recipe(method: str, student: str, args: argparse.Namespace) -> Recipe:
    """A run of one epoch, whose first half warms up."""
    steps = args.images // args.batch
    queue = {"queue": args.queue} if "queue" in get_method(method).Config.model_fields else {}
    return build_recipe(
        {
            "method": {"name": method, **queue},
            "student": {"name": student, "image_size": args.size},
            "train": {"epochs": 1, "batch_size": args.batch},
            "run": {"log_every": steps // 2},
        }
    )


def epoch_s(
    recipe: Recipe, images: ImageSet, cache: Path, weights: Path | None, args: argparse.Namespace
) -> float:
    """Seconds of an epoch, by the second half of one."""
    with tempfile.TemporaryDirectory() as folder:
        run_training(
            recipe,
            images,
            Path(folder) / "run",
            caches=[open_cache(cache)],
            online=None if weights is None else Online(weights),
            device=torch.device(args.device),
            workers=args.workers,
            bar=silent_bar,
            tell=lambda _: None,
        )
        rate: float = read_metrics(Path(folder) / "run")[-1]["images_per_s"]
    return len(images) / rate


def examine(
    images: ImageSet, teacher: str, method: str, folder: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All students of one teacher by one method."""
    model, device = TEACHERS[teacher], torch.device(args.device)
    weights = folder / f"{model}.pth"
    if not weights.exists():
        make_weights(model, folder)
    loaded = load_teacher(f"timm:{model}", weights=weights, image_size=args.size)
    recipes = [make_recipe(method, student, args) for student in args.students]
    needs = recipes[0].needs
    settings = Extraction(
        num_views=needs.views,
        policy=recipes[0].method_class.views,
        arrays=(needs.target,),
        batch_size=args.batch,
    )
    question = ask(images, loaded, settings, device=device)
    cache = folder / f"{teacher}-{method}"
    started = time.perf_counter()
    run_extraction(
        images, loaded, cache, settings, device=device, workers=args.workers, bar=silent_bar,
    )  # fmt: skip
    extraction_s = time.perf_counter() - started
    results = []
    for recipe in recipes:
        asked = replace(question, student=recipe)
        plans, cached, live = [], [], []
        for _ in range(args.rounds):
            # Measured in every turn, so that a busy machine is as busy for the plan.
            rates = measure(
                asked, device=device, cores=available_cores(), machine="here", disk=folder,
                bar=silent_bar, spend_s=args.spend,
            )  # fmt: skip
            plans.append(make_plan(asked, rates, Machines(1, 1, args.workers)))
            cached.append(epoch_s(recipe, images, cache, None, args))
            live.append(epoch_s(recipe, images, cache, weights, args))
        results.append(
            {
                "teacher": teacher,
                "method": method,
                "student": recipe.student.name,
                **compare(plans, cached, live, extraction_s),
            }
        )
        print(line(results[-1]), flush=True)
    return results


def compare(
    plans: list[Plan], cached: list[float], live: list[float], extraction_s: float
) -> dict[str, Any]:
    """Found and foretold, and by how much they differ, as a share of what was found."""
    foretold_cached = float(
        np.median([plan.epochs.cached.total_s for plan in plans if plan.epochs])
    )
    foretold_live = float(np.median([plan.epochs.live.total_s for plan in plans if plan.epochs]))
    foretold_extraction = float(np.median([plan.extraction.total_s for plan in plans]))
    found = {"cached_s": float(np.median(cached)), "live_s": float(np.median(live))}
    found["extraction_s"] = extraction_s
    found["break_even"] = extraction_s / (found["live_s"] - found["cached_s"])
    foretold = {
        "cached_s": foretold_cached,
        "live_s": foretold_live,
        "extraction_s": foretold_extraction,
        "break_even": foretold_extraction / (foretold_live - foretold_cached),
    }
    return {
        "found": found,
        "foretold": foretold,
        "error": {key: foretold[key] / found[key] - 1 for key in found},
        "live_over_cached": spread([b / a for a, b in zip(cached, live, strict=True)]),
    }


HEADER = [
    "teacher, method, student", "cached s", "foretold", "live s", "foretold", "live / cached",
    "break-even", "foretold",
]  # fmt: skip


def row(result: dict[str, Any]) -> list[str]:
    """One line of the table; errors of the plan in brackets."""
    found, foretold, error = result["found"], result["foretold"], result["error"]
    ratio = result["live_over_cached"]

    def plan(key: str) -> str:
        return f"{foretold[key]:.2f} ({error[key]:+.0%})"

    return [
        f"{result['teacher']}, {result['method']}, {result['student']}",
        f"{found['cached_s']:.2f}",
        plan("cached_s"),
        f"{found['live_s']:.2f}",
        plan("live_s"),
        in_words(ratio),
        f"{found['break_even']:.1f}",
        plan("break_even"),
    ]


def line(result: dict[str, Any]) -> str:
    """The same while the rest is still to come."""
    return " | ".join(row(result))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="images; scikit-image's unless given")
    parser.add_argument("--images", type=int, default=64, help="of them, whole batches")
    parser.add_argument("--size", type=int, default=64, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--queue", type=int, default=32, help="SEED's; seed_loss.py has long ones")
    parser.add_argument("--rounds", type=int, default=2, help="turns")
    parser.add_argument("--spend", type=float, default=0.5, help="seconds of the plan for a stage")
    parser.add_argument("--workers", type=int, default=0, help="rendering processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--methods", nargs="+", default=["simreg", "seed"])
    parser.add_argument("--students", nargs="+", default=["resnet18", "efficientnet_b0"])
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds, on a machine that others use"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.cpu_time:
        if args.workers or args.device != "cpu":
            parser.error("--cpu-time counts this process alone: it goes with a CPU and 0 workers")
        # Every clock of the training loop and of the plan; disks are not waited for then.
        time.monotonic = time.perf_counter = time.process_time
    if args.images < 2 * args.batch:
        parser.error("at least two batches of images are needed: one warms up")
    with tempfile.TemporaryDirectory(prefix="offline-online-") as name:
        folder = Path(name)
        images = open_images(args.data or photographs(folder / "images", args.images))
        images = take_rows(images, np.arange(min(args.images, len(images))))
        results = [
            result
            for teacher in args.teachers
            for method in args.methods
            for result in examine(images, teacher, method, folder, args)
        ]
    machine = describe_machine(
        processor=processor(), torch=torch.__version__, threads=torch.get_num_threads(),
        device=args.device,
    )  # fmt: skip
    print(format_table(HEADER, [row(result) for result in results]))
    print(
        f"{'CPU' if args.cpu_time else 'wall'} seconds; an epoch of {len(images)} images "
        f"at {args.size} px, batch {args.batch}, "
        f"{args.workers} workers, {machine['processor']}, load {machine['load_average'][0]:.1f}, "
        f"{machine['date']}"
    )
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items()}
        result = {"results": results, "settings": settings, "machine": machine}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
