"""An extraction beside its teacher alone, and beside the script that people write.

**Ceiling.** Rows a second from end to end (index, decode, render, teacher, shards, seal) over the
teacher's own steady rate on one resident batch of noise, at the same batch, precision and threads:
from pixels that need no decoding (PPM) and from JPEGs.

**People's script.** torchvision's transforms on Pillow images in a DataLoader, the teacher eagerly
in float32, `torch.save` at the end; every view decodes its image again. From there to `kdcache
extract` one thing is changed at a time: decode once for all views of an image, this renderer,
channels_last, bfloat16. The forms take turns on the same images.

The teacher is a ResNet-50 at 224 px with random weights, which cost the same as trained ones. All
in one process (`workers=0`), so that the cores are counted once.

    python benchmarks/extraction.py --data FOLDER_OF_JPEGS --json extraction.json
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from record import describe_machine, in_words, photographs, processor, seconds, spread
from rendering import torchvision_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from kdcache.extract import Extraction, run_extraction
from kdcache.images import ImageSet, index_images, open_images
from kdcache.precision import Precision, autocast
from kdcache.progress import silent_bar
from kdcache.teachers import Teacher, own_teacher
from kdcache.views import ViewMaker, get_policy, get_renderer

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_teacher(name: str) -> Teacher:
    """A timm model without weights of its own."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    return own_teacher(name, model, image_size=SIZE, mean=MEAN, std=STD)


def take_images(source: Path, count: int, folder: Path, suffix: str) -> ImageSet:
    """Some photographs in a folder of their own: as they are, or decoded to `.ppm`."""
    folder.mkdir()
    every = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    for path in every[:: max(1, len(every) // count)][:count]:
        if suffix == ".ppm":
            Image.open(path).convert("RGB").save(folder / f"{path.stem}.ppm")
        else:
            shutil.copy(path, folder / path.name)
    return open_images(folder)


class Ours:
    """`kdcache extract` with these settings; each call makes a cache and removes it."""

    def __init__(self, images: ImageSet, teacher: Teacher, args: argparse.Namespace) -> None:
        self._images, self._teacher, self._args = images, teacher, args
        self.last: list[str] = []
        """What the last one said of its time."""

    def __call__(self, precision: Precision) -> None:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_extraction(
                self._images, self._teacher, Path(folder) / "cache.zarr",
                Extraction(
                    num_views=self._args.views, policy=self._args.policy, precision=precision,
                    batch_size=self._args.batch_size,
                ),
                device=torch.device(self._args.device),
                workers=self._args.workers, bar=silent_bar,
            )  # fmt: skip
            self.last = outcome.lines()


def steady(teacher: Teacher, batch: Tensor, precision: Precision) -> None:
    """The teacher on a batch that lies on its device."""
    with torch.inference_mode(), autocast(precision, batch.device):
        for answers in teacher(batch):
            if answers is not None:
                answers.float().cpu()


def ceiling(args: argparse.Namespace, teacher: Teacher, work: Path) -> dict[str, Any]:
    """Both kinds of source over the teacher's steady rate."""
    device = torch.device(args.device)
    noise = torch.randint(0, 256, (args.batch_size, SIZE, SIZE, 3), dtype=torch.uint8)
    batch = noise.to(device)
    teacher.to(device)
    results = {}
    for kind, suffix in (("decoded pixels", ".ppm"), ("JPEG", ".jpg")):
        images = take_images(args.data, args.images, work / suffix[1:], suffix)
        extraction = Ours(images, teacher, args)
        num = len(images) * args.views
        batches = -(-num // args.batch_size)
        ratios, rates = [], []
        for turn in range(args.rounds + 1):
            alone = seconds(
                lambda n=batches: [steady(teacher, batch, args.precision) for _ in range(n)]
            )
            whole = seconds(partial(extraction, args.precision))
            if turn:
                ratios.append((num / whole) / (batches * args.batch_size / alone))
                rates.append(num / whole)
        results[kind] = {
            "views_per_s": spread(rates),
            "over_teacher": spread(ratios),
            "said": extraction.last,
        }
    return results


class PeoplesViews(Dataset[Tensor]):
    """A view an item, or all views of an image: decoded by Pillow, cut by torchvision."""

    def __init__(self, images: ImageSet, args: argparse.Namespace, *, once: bool) -> None:
        self._paths = [Path(images.source) / path for path in images.paths]
        self._transform = torchvision_transform(get_policy(args.policy), SIZE)
        self._num_views, self._once = args.views, once

    def __len__(self) -> int:
        return len(self._paths) * (1 if self._once else self._num_views)

    def __getitem__(self, item: int) -> Tensor:
        path = self._paths[item if self._once else item // self._num_views]
        image = Image.open(path).convert("RGB")
        views = [
            functional.normalize(functional.to_tensor(self._transform(image)), MEAN, STD)
            for _ in range(self._num_views if self._once else 1)
        ]
        return torch.stack(views)


def by_people(args: argparse.Namespace, images: ImageSet, *, once: bool) -> Iterator[Tensor]:
    """Batches of normalised floats."""
    items = args.batch_size // args.views if once else args.batch_size
    for views in DataLoader(PeoplesViews(images, args, once=once), max(1, items)):
        yield views.flatten(0, 1)


def by_renderer(args: argparse.Namespace, images: ImageSet, teacher: Teacher) -> Iterator[Tensor]:
    """The same by this renderer, normalised as the teacher does."""
    ids = index_images(images).ids
    maker = ViewMaker(images, ids, get_policy(args.policy), 0, get_renderer(), SIZE)
    views = np.arange(args.views)
    step = max(1, args.batch_size // args.views)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    for start in range(0, len(images), step):
        rows = np.arange(start, min(start + step, len(images)))
        pixels = np.stack(maker.make(rows, views).pixels, axis=1)
        flat = torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2)
        yield (flat.float() / 255 - mean) / std


def run_script(
    batches: Iterator[Tensor], model: torch.nn.Module, precision: Precision, device: torch.device
) -> None:
    """Show the teacher every batch, and save what it says."""
    features = []
    layout = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if layout else torch.contiguous_format
    with torch.inference_mode(), autocast(precision, device):
        for batch in batches:
            features.append(model(batch.to(device, memory_format=layout)).float().cpu())
    with tempfile.TemporaryFile() as file:
        torch.save(torch.cat(features), file)


def ladder(args: argparse.Namespace, teacher: Teacher, work: Path) -> dict[str, Any]:
    """From people's script to ours, a change at a time."""
    device = torch.device(args.device)
    images = take_images(args.data, args.images, work / "ladder", ".jpg")
    plain = timm.create_model(args.teacher, num_classes=0).eval().to(device)
    packed = timm.create_model(args.teacher, num_classes=0).eval().to(device)
    packed = packed.to(memory_format=torch.channels_last)
    ours = partial(by_renderer, args, images, teacher)
    forms: dict[str, Callable[[], None]] = {
        "people's script": lambda: run_script(
            by_people(args, images, once=False), plain, "fp32", device
        ),
        "+ decode once for all views": lambda: run_script(
            by_people(args, images, once=True), plain, "fp32", device
        ),
        "+ this renderer": lambda: run_script(ours(), plain, "fp32", device),
        "+ channels_last": lambda: run_script(ours(), packed, "fp32", device),
        "+ bfloat16": lambda: run_script(ours(), packed, "bf16", device),
        "kdcache extract, float32": partial(Ours(images, teacher, args), "fp32"),
        "kdcache extract, bfloat16": partial(Ours(images, teacher, args), "bf16"),
    }
    forms = {name: form for name, form in forms.items() if any(t in name for t in args.forms)}
    num = len(images) * args.views
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(args.rounds + 1):
        for name, work_of in forms.items():
            took = seconds(work_of)
            if turn:
                times[name].append(took)
    first = next(iter(times.values()))
    return {
        name: {
            "views_per_s": spread([num / s for s in found]),
            "times_as_fast": spread([a / b for a, b in zip(first, found, strict=True)]),
        }
        for name, found in times.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="JPEGs; scikit-image's unless given")
    parser.add_argument("--teacher", default="resnet50", help="a timm model")
    parser.add_argument("--forms", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--policy", default="moco_v2")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    teacher = make_teacher(args.teacher)
    with tempfile.TemporaryDirectory() as folder:
        args.data = args.data or photographs(Path(folder) / "photographs", args.images)
        whole = {} if args.forms != [""] else ceiling(args, teacher, Path(folder))
        if whole:
            print("| source | views / s | over the teacher alone |\n|---|---:|---:|")
        for kind, found in whole.items():
            ratio = found["over_teacher"]
            print(f"| {kind} | {found['views_per_s']['median']:.1f} | {in_words(ratio)} |")
            print("\n".join(f"<!-- {line} -->" for line in found["said"]), flush=True)
        steps = ladder(args, teacher, Path(folder))
    print("\n| form | views / s | times as fast |\n|---|---:|---:|")
    for name, found in steps.items():
        ratio = found["times_as_fast"]
        print(f"| {name} | {found['views_per_s']['median']:.1f} | {in_words(ratio)} |")
    if args.json:
        machine = describe_machine(
            processor=processor(), torch=torch.__version__, threads=torch.get_num_threads()
        )
        figures = {"ceiling": whole, "ladder": steps, "machine": machine}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
