"""Views per CPU second: this renderer beside torchvision's transforms and Albumentations.

All start from the bytes of the same JPEGs and end in square views of bytes: read, decode once for
the V views of an image, crop, jitter, grey, blur, flip with a policy's numbers. kdcache checks the
image's id and draws from its counter-based generator besides. One thread; the forms take turns, and
what is compared is the ratio within a turn. Albumentations (2.0.8, the last one under the MIT
licence) takes part where it is installed; its crops are aliased unless it is asked for areas.

    python benchmarks/rendering.py --data FOLDER_OF_JPEGS --json rendering.json
"""

import argparse
import importlib.util
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from record import describe_machine, in_words, photographs, processor, spread
from torchvision.transforms import v2

from kdcache.images import index_images, open_images
from kdcache.progress import silent
from kdcache.views import Policy, ViewMaker, get_policy, get_renderer

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
OURS = "kdcache"
BLUR_SIDE = 23
"""MoCo-v2's transforms in torchvision: a kernel for the largest sigma, 2."""

Form = Callable[[Path, int], object]
"""Makes V views of a file."""


def torchvision_transform(policy: Policy, size: int) -> v2.Compose:
    """The policy by torchvision's names."""
    steps: list[Any] = [v2.RandomResizedCrop(size, policy.scale, policy.ratio, antialias=True)]
    if policy.jitter:
        strength = policy.brightness, policy.contrast, policy.saturation, policy.hue
        steps.append(v2.RandomApply([v2.ColorJitter(*strength)], policy.jitter))
    if policy.grey:
        steps.append(v2.RandomGrayscale(policy.grey))
    if policy.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(BLUR_SIDE, policy.sigma)], policy.blur))
    return v2.Compose([*steps, v2.RandomHorizontalFlip(policy.flip)])


def albumentations_transform(policy: Policy, size: int, *, area: bool) -> Any:
    """The policy by Albumentations' names."""
    import albumentations as A

    crop = {"scale": policy.scale, "ratio": policy.ratio}
    steps: list[Any] = [
        A.RandomResizedCrop((size, size), **crop, area_for_downscale="image" if area else None)
    ]
    if policy.jitter:
        names = ("brightness", "contrast", "saturation")
        factors = {name: (1 - getattr(policy, name), 1 + getattr(policy, name)) for name in names}
        steps.append(A.ColorJitter(**factors, hue=(-policy.hue, policy.hue), p=policy.jitter))
    if policy.grey:
        steps.append(A.ToGray(p=policy.grey))
    if policy.blur:
        steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=policy.sigma, p=policy.blur))
    return A.Compose([*steps, A.HorizontalFlip(p=policy.flip)])


def by_tensors(transform: v2.Compose, path: Path, num_views: int) -> object:
    """torchvision on tensors, as its documentation advises."""
    data = torchvision.io.read_file(str(path))
    image = torchvision.io.decode_jpeg(data, mode=torchvision.io.ImageReadMode.RGB)
    return [transform(image) for _ in range(num_views)]


def by_pil(transform: v2.Compose, path: Path, num_views: int) -> object:
    """torchvision on Pillow's images, as most code bases have it."""
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    return [np.asarray(transform(image)) for _ in range(num_views)]


def by_albumentations(transform: Any, path: Path, num_views: int) -> object:
    """Albumentations on what OpenCV decodes."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    return [transform(image=image)["image"] for _ in range(num_views)]


def forms_of(policy: Policy, size: int) -> dict[str, Form]:
    """The baselines by name."""
    transform = torchvision_transform(policy, size)
    forms: dict[str, Form] = {
        "torchvision v2, tensors": partial(by_tensors, transform),
        "torchvision v2, Pillow": partial(by_pil, transform),
    }
    if importlib.util.find_spec("albumentations"):
        for name, area in (("Albumentations", False), ("Albumentations, antialiased", True)):
            made = albumentations_transform(policy, size, area=area)
            forms[name] = partial(by_albumentations, made)
    return forms


def measure(
    folder: Path, policy: Policy, num_views: int, *, size: int, num_images: int, rounds: int
) -> dict[str, Any]:
    """Views per CPU second of every form, and how many times as fast ours is."""
    images = open_images(folder)
    index = index_images(images, threads=1, progress=silent)
    maker = ViewMaker(images, index.ids, policy, 0, get_renderer(), size)
    rows = np.linspace(0, len(images) - 1, num_images).astype(np.int64)
    files = [folder / images.paths[row] for row in rows]
    views = np.arange(num_views)

    def ours() -> None:
        maker.make(rows, views)

    def theirs(form: Form) -> None:
        for path in files:
            form(path, num_views)

    works: dict[str, Callable[[], None]] = {OURS: ours}
    works |= {name: partial(theirs, form) for name, form in forms_of(policy, size).items()}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if turn:  # the first one warms up
                rates[name].append(len(rows) * num_views / (time.process_time() - started))
    return {
        name: {
            "views_per_cpu_s": spread(found),
            "ours_over_this": spread([a / b for a, b in zip(rates[OURS], found, strict=True)]),
        }
        for name, found in rates.items()
    }


def all_tables(data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every policy and number of views, and print as it goes."""
    results: dict[str, Any] = {}
    print("| policy, views an image | form | views / CPU s | kdcache / this |\n|---|---|---:|---:|")
    for name in args.policies.split(","):
        for num_views in map(int, args.views.split(",")):
            found = measure(
                data, get_policy(name), num_views,
                size=args.size, num_images=args.images, rounds=args.rounds,
            )  # fmt: skip
            results[f"{name}, {num_views}"] = found
            for form, figures in found.items():
                ratio = figures["ours_over_this"]
                print(
                    f"| `{name}`, {num_views} | {form} "
                    f"| {figures['views_per_cpu_s']['median']:,.0f} "
                    f"| {in_words(ratio, '.1f')} |",
                    flush=True,
                )
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="JPEGs; scikit-image's unless given")
    parser.add_argument("--policies", default="moco_v2,weak")
    parser.add_argument("--views", default="1,2,8")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as work:
        data = args.data or photographs(Path(work) / "photographs", args.images)
        results = all_tables(data, args)
    if args.json:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        machine = describe_machine(processor=processor(), **versions)
        args.json.write_text(json.dumps({"results": results, "machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
