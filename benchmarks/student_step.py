"""A student's step with targets from a cache, beside the same step with a constant for a target.

One student learns from a cache of noise (its values cost what real ones cost), its twin from a
tensor that never changes; everything else is the training loop's own: batch, queue, loss, gradient,
optimiser, log. The two take turns in one process, on the same views; what is compared is the ratio
of medians. For SEED the twin has no queue to rank either (it is pulled to its constant by the
cosine), so that its ratio is the price of all that SEED does with the teacher's words.

    python benchmarks/student_step.py --json student_step.json           # ResNet-18, 64 px, 128
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import describe_machine, in_words, photographs, processor, random_cache, spread
from torch import Tensor, nn
from torch.nn import functional

from kdcache.heads import ProjectionHead
from kdcache.images import index_images, open_images
from kdcache.methods import Batch, Loss
from kdcache.recipe import Recipe, load_recipe
from kdcache.shapes import Float, Int64
from kdcache.store import Cache, open_cache
from kdcache.targets import SampleStream, Targets, TargetTable
from kdcache.train.data import Plan, StepImages, StepPixels, ViewSchedule
from kdcache.train.lesson import Lesson
from kdcache.train.loop import Learner, learn, open_learner
from kdcache.train.run import build_state
from kdcache.views import ViewMaker, get_policy, get_renderer

FEATURE, EMBEDDING = 2048, 128
VIEWS = 2


class Constant:
    """The same targets for every batch."""

    def __init__(self, dim: int, most: int, device: torch.device) -> None:
        self.dim, self.device = dim, device
        self._rows = functional.normalize(torch.randn(most, dim, device=device), dim=1)

    def take(self, samples: Int64[np.ndarray, " B"], view: int) -> Float[Tensor, "B D"]:
        return self._rows[: len(samples)]


class Pull(nn.Module):
    """SEED's student and head, pulled to a target by the cosine: no queue."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.head = method.head

    def forward(self, student: nn.Module, batch: Batch) -> Loss:
        (image,), (target,) = batch.images, batch.targets
        said = functional.normalize(self.head(student(image)), dim=1)
        return Loss(-(said * target).sum(1).mean(), {})

    def finish_step(self, student: nn.Module) -> None:
        """Nothing follows the step."""


def make_recipe(name: str, args: argparse.Namespace) -> Recipe:
    """A method at the paper's settings, but for the student's size and the queue."""
    settings = [f"student.image_size={args.size}", f"train.batch_size={args.batch_size}"]
    settings += [f"run.precision={args.precision}"]
    if name in ("seed", "retro"):
        settings.append(f"method.queue={args.queue}")
    return load_recipe(method=name, student=args.student, overrides=settings)


def make_lesson(recipe: Recipe, images: StepImages, targets: Targets, num_rows: int) -> Lesson:
    """What a run on these targets is shown."""
    stream = SampleStream(num_rows, recipe.train.batch_size, 0)
    plan = Plan(stream, ViewSchedule(recipe.needs.views, VIEWS))
    steps = StepImages(images.maker, plan, images.rows, recipe.needs.views)
    head = None
    if recipe.needs.head:
        layers = nn.Sequential(
            nn.Linear(FEATURE, FEATURE), nn.ReLU(), nn.Linear(FEATURE, targets.dim)
        )
        head = ProjectionHead.from_modules(layers)
    return Lesson(steps, [targets], [images.rows], [head])


@contextmanager
def learner(
    recipe: Recipe, lesson: Lesson, run: Path, device: torch.device, *, pulled: bool
) -> Iterator[Learner]:
    """A student at its first step."""
    run.mkdir()
    state = build_state(recipe, lesson, device)
    if pulled:
        pull = Pull(state.method).to(device).train()
        state = replace(state, method=pull)
    with open_learner(recipe, lesson, state, run) as made:
        yield made


def measure(
    name: str, caches: dict[str, Cache], images: StepImages, work: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of a step of both twins, and their ratio."""
    device, recipe = torch.device(args.device), make_recipe(name, args)
    cache = caches[recipe.needs.target]
    rows = np.arange(cache.num_rows)
    table = TargetTable(cache, recipe.needs.target, rows, device=device, keep=recipe.needs.views)
    twins = {"cache": table, "constant": Constant(table.dim, args.queue, device)}
    shape = (args.batch_size, args.size, args.size, 3)
    seen = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(recipe.needs.views)]
    pixels = StepPixels([view.to(device) for view in seen], [])
    times: dict[str, list[float]] = {twin: [] for twin in twins}
    with ExitStack() as stack:
        students = {
            twin: stack.enter_context(
                learner(
                    recipe, make_lesson(recipe, images, targets, cache.num_rows),
                    work / f"{name}-{twin}", device,
                    pulled=name == "seed" and twin == "constant",
                )
            )
            for twin, targets in twins.items()
        }  # fmt: skip
        for turn in range(args.steps + 2):
            for twin in sorted(twins, reverse=bool(turn % 2)):
                started = time.perf_counter()
                learn(students[twin], pixels, device)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn > 1:  # the first ones warm up
                    times[twin].append(time.perf_counter() - started)
    pairs = zip(times["cache"], times["constant"], strict=True)
    medians = {twin: statistics.median(found) for twin, found in times.items()}
    return {
        "cache_s": spread(times["cache"]),
        "constant_s": spread(times["constant"]),
        "ratio_of_medians": medians["cache"] / medians["constant"],
        "ratio": spread([a / b for a, b in pairs]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--methods", default="simreg,retro,seed")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--queue", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=12, help="of each twin")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    print("| method | step, ms | with a constant, ms | ratio of medians | of pairs |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        caches = {}
        for array, dim in (("feature", FEATURE), ("embedding", EMBEDDING)):
            num_rows = args.queue * 2 if array == "embedding" else 16_384
            random_cache(work / array, num_rows=num_rows, num_views=VIEWS, dim=dim, array=array)
            caches[array] = open_cache(work / array)
        shown = open_images(photographs(work / "photographs", 2))
        maker = ViewMaker(
            shown, index_images(shown).ids, get_policy("weak"), 0, get_renderer(), args.size
        )
        stream = SampleStream(args.batch_size, args.batch_size, 0)
        images = StepImages(maker, Plan(stream, ViewSchedule(1, 1)), np.arange(2), 1)
        for name in args.methods.split(","):
            found = results[name] = measure(name, caches, images, work, args)
            pairs = found["ratio"]
            print(
                f"| {name} | {1e3 * found['cache_s']['median']:.1f} "
                f"| {1e3 * found['constant_s']['median']:.1f} | {found['ratio_of_medians']:.3f} "
                f"| {in_words(pairs, '.3f')} |",
                flush=True,
            )
    if args.json:
        machine = describe_machine(
            processor=processor(), torch=torch.__version__, threads=torch.get_num_threads()
        )
        args.json.write_text(json.dumps({"results": results, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
