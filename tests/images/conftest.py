"""Small encoded images, and folders of them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """A smooth picture with some texture, 45 x 61 RGB: no side is a multiple of a JPEG block."""
    y, x = np.mgrid[0:45, 0:61]
    waves = np.stack([x * 4, y * 5, 128 + 100 * np.sin(x / 5 + y / 3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encode an array, or a Pillow image, in a format of Pillow."""

    def encode(pixels, kind: str, **options) -> bytes:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def photos(tmp_path: Path, encode) -> Path:
    """An ImageFolder of three classes, five images, with nesting and other files beside them."""
    root = tmp_path / "photos"
    names = ["cat/b.jpg", "cat/a.JPG", "ant/deep/er/x.png", "ant/y.Jpeg", "dog/é.webp"]
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix, "JPEG")
        path.write_bytes(encode(np.full((4, 5, 3), 40 * number, np.uint8), kind))
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.jpg").write_bytes(b"hidden")
    (root / ".cache").mkdir()
    (root / ".cache" / "thumb.jpg").write_bytes(b"hidden")
    return root
