"""Fixtures: a clean environment, tiny images, a tiny teacher, a tiny cache."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights beside the repository; skips where it is missing."""
    path = Path(os.environ.get("KDCACHE_SHARED", ROOT.parent / "shared"))
    if not (path / "data" / "README.md").exists():
        pytest.skip("needs the folder shared/ with real images and weights, which is not here")
    return path


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every test starts from one seed, with an empty home of its own and without a network hub."""
    torch.manual_seed(0)
    monkeypatch.setenv("KDCACHE_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def paint(rng: np.random.Generator, kind: int, size: int = 40) -> np.ndarray:
    """A picture of one of four kinds that a network can tell apart: stripes, rings and so on."""
    y, x = np.mgrid[:size, :size] / size
    phase, tilt = rng.uniform(0, 6.28), rng.uniform(0.8, 1.2)
    wave = (
        np.sin(20 * x * tilt + phase),
        np.sin(20 * y * tilt + phase),
        np.sin(40 * np.hypot(x - 0.5, y - 0.5) * tilt + phase),
        np.sign(np.sin(12 * x * tilt + phase) * np.sin(12 * y * tilt + phase)),
    )[kind % 4]
    colour = rng.uniform(60, 180, 3)
    picture = colour + wave[..., None] * 60 + rng.normal(0, 8, (size, size, 3))
    return picture.clip(0, 255).astype(np.uint8)


def make_folder(
    root: Path, *, per_class: int, classes: int = 4, size: int = 40, seed: int = 0
) -> Path:
    """An ImageFolder of painted pictures: half JPEG, half PNG."""
    rng = np.random.default_rng(seed)
    for kind in range(classes):
        folder = root / f"class{kind}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            picture = Image.fromarray(paint(rng, kind, size))
            if i % 2:
                picture.save(folder / f"{i:03}.png")
            else:
                picture.save(folder / f"{i:03}.jpg", quality=92)
    return root


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures in 4 classes; not to be changed."""
    return make_folder(tmp_path_factory.mktemp("images") / "train", per_class=12)


@pytest.fixture(scope="session")
def headless_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of timm's test_resnet without a projection head, random weights."""
    import timm

    path = tmp_path_factory.mktemp("weights") / "headless.pth"
    with torch.random.fork_rng():
        torch.manual_seed(8)
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of timm's test_resnet with a MoCo-like head of 16 numbers, random weights."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = timm.create_model("test_resnet", num_classes=0).eval()
        width = model(torch.zeros(1, 3, 32, 32)).shape[1]
        head = torch.nn.Sequential(
            torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 16)
        )
    path = tmp_path_factory.mktemp("weights") / "teacher.pth"
    state = {**model.state_dict(), **{f"fc.{k}": v for k, v in head.state_dict().items()}}
    torch.save({"state_dict": state}, path)
    return path
