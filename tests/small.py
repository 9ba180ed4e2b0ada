"""What several rooms' tests make: caches and runs of tiny images, quickly."""

from pathlib import Path

import torch

from kdcache.derive import run_neighbours
from kdcache.extract import Extraction, run_extraction
from kdcache.images import open_images
from kdcache.methods import get_method
from kdcache.progress import progress_bar, silent_bar
from kdcache.recipe import Recipe, build_recipe
from kdcache.store import open_cache
from kdcache.teachers import load_teacher
from kdcache.train import Outcome, run_training

CPU = torch.device("cpu")


def make_cache(
    data: Path,
    weights: Path | None,
    out: Path,
    *,
    model="test_resnet",
    image_size=32,
    skip_unreadable=False,
    workers=0,
    bar=progress_bar,
    **settings,
):
    """A cache of test_resnet at 32 px: 2 weak views, features and 16-d embeddings."""
    return run_extraction(
        open_images(data),
        load_teacher(f"timm:{model}", weights=weights, image_size=image_size),
        out,
        small_extraction(**settings),
        skip_unreadable=skip_unreadable,
        device=CPU,
        workers=workers,
        bar=bar,
    )


def small_extraction(**changes) -> Extraction:
    """2 weak views, float32 all the way."""
    small = {"num_views": 2, "dtype": "float32", "precision": "fp32", "batch_size": 16}
    return Extraction(**{**small, **changes})


def add_graph(out: Path, k: int = 3) -> None:
    """Give a cache the graph of its images."""
    run_neighbours(open_cache(out), k=k, array=None, index="exact", nprobe=1, bar=silent_bar)


def tree_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def recipe_for(name: str = "simreg", /, **tables) -> Recipe:
    """A recipe for tiny images: two epochs of six steps.

    By a rule, not by name, a method's queue is short: its file alone makes it trained by tests.
    """
    has_queue = "queue" in get_method(name).Config.model_fields
    settings = {
        "method": {"name": name, **({"queue": 20} if has_queue else {})},
        "student": {"name": "test_resnet", "image_size": 32},
        "train": {"epochs": 2, "batch_size": 8},
        "run": {"policy": "weak", "log_every": 1},
    }
    return build_recipe(
        {table: {**own, **tables.get(table, {})} for table, own in settings.items()}
    )


def run(recipe: Recipe, data: Path, out: Path, *caches: Path, **options) -> Outcome:
    """A training run; a method without a teacher is given no cache."""
    wanted = caches if recipe.needs.target is not None else ()
    settings = {
        "caches": [open_cache(cache) for cache in wanted],
        "device": CPU,
        "workers": 0,
        "bar": progress_bar,
        "tell": print,
    }
    return run_training(recipe, open_images(data), out, **{**settings, **options})
