"""What a run says of itself: `metrics.jsonl` and TensorBoard events, seamless after a resume."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from kdcache import distributed
from kdcache.files import write_atomic

METRICS = "metrics.jsonl"

WATCHED = "eval/"
"""What a `Watch` finds stands under names that begin so, in records of their own."""


class MetricsLog:
    """Appends one record at a time; on a resume, what came after the checkpoint is taken back."""

    def __init__(self, run: Path, *, step: int) -> None:
        self._path = run / METRICS
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        write_atomic(self._path, "".join(line + "\n" for line in kept).encode())
        self._file = self._path.open("a", encoding="utf-8")
        records = [json.loads(line) for line in kept]
        self.watched = {r["step"] for r in records if any(k.startswith(WATCHED) for k in r)}
        """Steps at which the student was examined."""
        self._events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add the record of one step."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._events.close()

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        whole, _, _ = self._path.read_text(encoding="utf-8").rpartition("\n")
        return [line for line in whole.split("\n") if line]


@contextmanager
def open_log(run: Path, *, step: int) -> Iterator[MetricsLog | None]:
    """The log of a run at a step; None in processes other than the first, which write nothing."""
    if not distributed.is_first():
        yield None
        return
    with MetricsLog(run, step=step) as log:
        yield log


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first."""
    text = (run / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
