"""What the benchmarks beside this file share: what they write down, and a cache of noise."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np


def describe_machine(**more: Any) -> dict[str, Any]:
    """Date, cores, load and Python, and what the script has to add."""
    return {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **more,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles; of one value that value, as `--rounds 1` gives it."""
    several = values if len(values) > 1 else values * 2
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "count": len(values)}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_words(found: dict[str, float], form: str = ".2f") -> str:
    """A spread for people: the median, quartiles in brackets."""
    median, low, high = (format(found[key], form) for key in ("median", "low", "high"))
    return f"{median} ({low}-{high})"


def processor() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def photographs(folder: Path, count: int) -> Path:
    """JPEGs of the commonest size of ImageNet's (500 x 375, quality 90), cut from the photographs
    in scikit-image's wheel, each from another place of its photograph."""
    # Imported here, and below, for those whose memory is measured and that want none of it.
    import skimage
    from PIL import Image, ImageOps

    from kdcache.demo.patches import PHOTOGRAPHS

    source = Path(skimage.__file__).parent / "data"
    folder.mkdir(parents=True)
    for number in range(count):
        name = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
        place = (number * 0.37 % 1, number * 0.61 % 1)
        photograph = Image.open(source / name).convert("RGB")
        cut = ImageOps.fit(photograph, (500, 375), bleed=0.05, centering=place)
        cut.save(folder / f"{number:04}.jpg", quality=90)
    return folder


def random_cache(
    path: Path, *, num_rows: int, num_views: int, dim: int, array: str = "embedding"
) -> None:
    """A cache of one float16 array drawn at random."""
    from kdcache.store import ArraySpec, RowIndex, create_cache

    rng = np.random.default_rng(0)
    index = RowIndex(
        image_ids=rng.integers(0, 256, (num_rows, 16), np.uint8),
        labels=np.zeros(num_rows, np.int32),
        classes=("all",),
        paths=[f"{row:09}.jpg" for row in range(num_rows)],
    )
    recipe = {"arrays": {array: {"dim": dim, "dtype": "float16"}}}
    writer = create_cache(
        path,
        recipe=recipe,
        arrays=[ArraySpec(array, dim)],
        num_views=num_views,
        index=index,
        made_with={"numpy": np.__version__},
    )
    for piece in writer.missing():
        shape = (len(writer.piece_rows(piece)), num_views, dim)
        values = rng.standard_normal(shape, np.float32)
        writer.put_piece(piece, {array: values}, {}, {})
    writer.seal()


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
