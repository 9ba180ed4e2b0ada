"""Folders that look like runs, made in milliseconds: what the tests of reports read."""

import json
import math
from pathlib import Path

import torch

from kdcache.evals import Score
from kdcache.evals.ledger import append_scores
from kdcache.students import build_student, save_student

CACHE = "c0ffee" * 10 + "beef"
TEACHER = {
    "name": "swav_r50",
    "weights": {"source": "somewhere", "sha256": "ab" * 32},
    "image_size": 96,
    "licence": "CC-BY-NC-4.0",
    "policy": "weak",
    "views": 4,
    "images": 80,
}


def records_of(num: int = 20, *, scale: float = 1.0) -> list[dict[str, float | None]]:
    """A log of 2 epochs: 20 steps of 8 images, 40 images a second."""
    return [
        {
            "step": i + 1,
            "epoch": (i + 1) / 10,
            "lr": 0.1 * math.cos(i / num),
            "loss": scale * (2.0 - i / num),
            "gradient_norm": 1.0 + i,
            "images_per_s": 40.0,
            "cosine": i / num,
        }
        for i in range(num)
    ]


def make_run(
    folder: Path,
    method: str = "simreg",
    *,
    student: str = "test_resnet",
    records: list[dict[str, float | None]] | None = None,
    finished: bool = True,
    taught: bool = True,
    weights_seed: int = 0,
    **record: object,
) -> Path:
    """A run of two epochs by test_resnet at 32 px."""
    folder.mkdir(parents=True)
    recipe = {
        "method": {"name": method},
        "student": {"name": student, "image_size": 32},
        "train": {"epochs": 2, "batch_size": 8},
        "run": {"seed": 3, "policy": None, "views": 0},
    }
    source = {"caches": [CACHE], "online": False} if taught else {"images": "1a" * 32}
    told = {
        "taught_by": [TEACHER] if taught else [],
        "versions": {"kdcache": "9.8", "torch": "7.6"},
    }
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe, **source, **told, **record}))
    lines = [json.dumps(one) for one in (records_of() if records is None else records)]
    if lines:
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if finished:
        write_student(folder, weights_seed)
    return folder


def write_student(folder: Path, seed: int = 0) -> None:
    """A student with random weights, whatever the recipe names."""
    torch.manual_seed(seed)
    student = build_student("test_resnet", image_size=32)
    save_student(folder / "student.safetensors", student, {"method": "any"})


def score(value: float, k: int | None = 1, **changes: object) -> Score:
    """kNN of this k, or the linear probe."""
    fields = {
        "protocol": "knn" if k else "linear",
        "setting": {"k": k, "vote": "plain"} if k else {"preset": "simreg"},
        "metric": "top1",
        "value": value,
        "num_queries": 200,
        "num_classes": 4,
    }
    return Score(**{**fields, **changes})


def keep(
    run: Path, *scores: Score, data: str = "pictures/val", fingerprint: str = "da" * 32
) -> None:
    """Put scores into the run's ledger."""
    append_scores(run, scores, data=data, data_fingerprint=fingerprint, versions={"torch": "7.6"})
