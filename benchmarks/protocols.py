"""The protocols beside independent implementations of them, on real images.

    PYTHONPATH=tests python benchmarks/protocols.py --data tiny50 \
        --subject shared_teachers:cifar10_resnet20 --teacher shared_teachers:cifar10_resnet56

Ours are what `kdcache eval` computes; beside them stand scikit-learn's kNN and average precision,
scipy's assignment and rank correlation, CKA by Gram matrices, and MoCo's linear evaluation as a
plain torch script with torchvision's transforms. `--data` holds train/ and val/.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from kdcache.evals import (
    Beside,
    Exam,
    Features,
    Score,
    Subject,
    examine,
    open_splits,
    open_subject,
)
from kdcache.nearest import kmeans
from kdcache.progress import progress_bar, silent_bar
from kdcache.table import format_table

CPU = torch.device("cpu")


class Row(NamedTuple):
    """One figure twice."""

    what: str
    ours: float
    theirs: float
    whose: str


def compare_features(
    gallery: Features, queries: Features, teacher: Features, scores: list[Score]
) -> Iterator[Row]:
    """What needs the features of centred views only: ours is looked up, theirs computed."""
    ours = {(s.protocol, s.setting.get("preset"), s.setting.get("k"), s.metric): s for s in scores}
    for preset, k in [*(("simreg", k) for k in (1, 20)), *(("dino", k) for k in (10, 20, 100))]:
        score = ours["knn", preset, k, "top1"]
        theirs = sklearn_knn(gallery, queries, k, weighted=preset == "dino")
        yield Row(f"knn:{preset}, k = {k}", score.value, theirs, "scikit-learn")
    mean_precision = sklearn_map(gallery, queries)
    yield Row("retrieval, mAP", ours["retrieval", None, None, "mAP"].value, mean_precision,
              "scikit-learn")  # fmt: skip
    aligned = scipy_alignment(gallery, queries)
    yield Row("cluster:compress", ours["cluster", "compress", None, "top1"].value, aligned,
              "scipy")  # fmt: skip
    cka = gram_cka(queries.values, teacher.values)
    yield Row("fidelity, CKA", ours["fidelity", None, None, "cka"].value, cka, "numpy")
    ranks = scipy_ranks(queries.values, teacher.values)
    yield Row("fidelity, rank correlation",
              ours["fidelity", None, None, "rank_correlation"].value, ranks, "scipy")  # fmt: skip


def sklearn_knn(gallery: Features, queries: Features, k: int, *, weighted: bool) -> float:
    """scikit-learn's vote; of equal votes it takes the first class."""
    from sklearn.neighbors import KNeighborsClassifier

    judge = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=(lambda far: np.exp((1 - far) / 0.07)) if weighted else "uniform",
    )
    judge.fit(gallery.values, gallery.labels)
    return 100 * float(judge.score(queries.values, queries.labels))


def sklearn_map(gallery: Features, queries: Features) -> float:
    """Mean over the queries of scikit-learn's average precision."""
    from sklearn.metrics import average_precision_score

    cosine = unit(queries.values) @ unit(gallery.values).T
    each = [
        average_precision_score(gallery.labels == label, row)
        for label, row in zip(queries.labels, cosine, strict=True)
    ]
    return 100 * float(np.mean(each))


def scipy_alignment(gallery: Features, queries: Features) -> float:
    """CompRess's script with sets of images, on the clusters of the same k-means."""
    from scipy.optimize import linear_sum_assignment

    num = len(gallery.classes)
    base = unit(gallery.values).astype(np.float32)
    centroids = kmeans(base, num, iterations=20, seed=0)
    of_train, of_test = (
        ((unit(side.values)[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
        for side in (gallery, queries)
    )
    cost = np.zeros((num, num))
    for i in range(num):
        inside = set(np.flatnonzero(of_train == i))
        for j in range(num):
            named = set(np.flatnonzero(gallery.labels == j))
            cost[i, j] = -len(inside & named) / max(len(inside), 1)
    _, class_of = linear_sum_assignment(cost)
    return 100 * float((class_of[of_test] == queries.labels).mean())


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al., equation 3, with N x N matrices."""
    centre = np.eye(len(x)) - 1 / len(x)
    a, b = (centre @ s.astype(float) @ s.astype(float).T @ centre for s in (x, y))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def scipy_ranks(x: np.ndarray, y: np.ndarray) -> float:
    """scipy's Spearman correlation, one image at a time."""
    from scipy.stats import spearmanr

    a, b = (unit(s) @ unit(s).T for s in (x, y))
    each = [spearmanr(np.delete(a[i], i), np.delete(b[i], i)).statistic for i in range(len(a))]
    return float(np.mean(each))


def torch_linear(data: Path, subject: Subject, epochs: int, seed: int) -> float:
    """MoCo's main_lincls.py in plain torch and torchvision; top-1 after the last epoch."""
    from torchvision import datasets, transforms

    size = subject.image_size
    as_array = transforms.Lambda(lambda image: torch.from_numpy(np.array(image)))
    train = datasets.ImageFolder(
        str(data / "train"),
        transforms.Compose(
            [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), as_array]
        ),
    )
    test = datasets.ImageFolder(
        str(data / "val"),
        transforms.Compose(
            [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size), as_array]
        ),
    )
    torch.manual_seed(seed)
    loader = torch.utils.data.DataLoader(train, 256, shuffle=True)
    network = subject.network.eval()
    width = network(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1]
    layer = nn.Linear(width, len(train.classes))
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), 30.0, momentum=0.9, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones(epochs))
    for _ in range(epochs):
        for images, labels in loader:
            with torch.no_grad():
                features = network(images)
            loss = nn.functional.cross_entropy(layer(features), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        schedule.step()
    right = 0
    with torch.no_grad():
        for images, labels in torch.utils.data.DataLoader(test, 256):
            right += int((layer(network(images)).argmax(1) == labels).sum())
    return 100 * right / len(test)


def milestones(epochs: int) -> list[int]:
    """MoCo's 60 and 80 of 100 epochs, of a shorter training in proportion."""
    return [epochs * 6 // 10, epochs * 8 // 10]


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64."""
    values = values.astype(float)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def some_images(data: Path, out: Path, classes: int, train: int, val: int) -> Path:
    """Links to the first images of the first classes."""
    for split, count in (("train", train), ("val", val)):
        for folder in sorted((data / split).iterdir())[:classes]:
            (out / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                (out / split / folder.name / path.name).symlink_to(path.resolve())
    return out


def run(data: Path, subject: Subject, teacher: Subject, epochs: int) -> list[Row]:
    """All rows; `epochs` of the linear evaluation, 0 leaves it out."""
    splits, beside = open_splits(data), Beside(teacher=teacher)
    given: dict[str, Any] = {"device": CPU, "workers": 0}
    protocols = ["knn:simreg", "knn:dino", "retrieval", "cluster:compress", "fidelity"]
    scores = examine(subject, splits, protocols, beside=beside, bar=silent_bar, **given)
    exam = Exam(subject=subject, splits=splits, bar=silent_bar, tell=print, **given)
    gallery = exam.features(splits.gallery, "center")
    queries = exam.features(splits.queries, "center")
    taught = exam.features(splits.queries, "center", teacher)
    rows = list(compare_features(gallery, queries, taught, scores))
    if epochs:
        changed = f"linear.epochs={epochs}", f"linear.milestones={milestones(epochs)}"
        ours = examine(
            subject, splits, ["linear:moco"], overrides=changed, bar=progress_bar, **given
        )
        for seed in (0, 1):
            theirs = torch_linear(data, subject, epochs, seed)
            whose = f"torch and torchvision, seed {seed}"
            rows.append(Row(f"linear:moco, {epochs} epochs", ours[0].value, theirs, whose))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--train", type=int, default=40, help="images a class")
    parser.add_argument("--val", type=int, default=20, help="images a class")
    parser.add_argument("--epochs", type=int, default=100, help="of linear:moco; 0: without it")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = some_images(given.data, Path(folder), given.classes, given.train, given.val)
        subject, teacher = open_subject(given.subject), open_subject(given.teacher)
        rows = run(data, subject, teacher, given.epochs)
    lines = [[r.what, f"{r.ours:.3f}", f"{r.theirs:.3f}", r.whose] for r in rows]
    print(format_table(["protocol", "kdcache", "independent", "by"], lines))
    print(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    if given.json:
        given.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
