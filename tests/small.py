"""What several rooms' tests make: caches and runs of tiny images, quickly."""

from pathlib import Path

import torch

from kdcache.extract import run_extraction
from kdcache.progress import progress_bar

CPU = torch.device("cpu")


def make_cache(data: Path, weights: Path, out: Path, **changes):
    """A cache of test_resnet at 32 px: 2 weak views, features and 16-d embeddings."""
    settings = {
        "teacher": "timm:test_resnet",
        "data": data,
        "out": out,
        "weights": weights,
        "num_views": 2,
        "policy": "weak",
        "seed": 0,
        "image_size": 32,
        "arrays": None,
        "dtype": "float32",
        "precision": "fp32",
        "batch_size": 16,
        "skip_unreadable": False,
        "device": CPU,
        "workers": 0,
        "bar": progress_bar,
    }
    return run_extraction(**{**settings, **changes})


def tree_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
