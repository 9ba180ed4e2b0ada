"""A teacher whose processes a test can watch and hold: `extract.noted:tiny`.

Where NOTED names a folder, each process that loads the teacher cuts a cache into small pieces and
writes a line into `log` before and after it keeps one; while there is a file `hold`, it waits
between the two.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdcache.store import CacheWriter, layout
from kdcache.teachers import Teacher, own_teacher

NAME = "extract.noted:tiny"
PIECE_ROWS = 4
ROOT = Path(__file__).parents[2]


def tiny() -> Teacher:
    if "NOTED" in os.environ:
        _take_notes(Path(os.environ["NOTED"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    third = (0.5, 0.5, 0.5)
    return own_teacher("tiny", model, image_size=32, mean=third, std=third)


def _take_notes(folder: Path) -> None:
    layout.PIECE_ROWS = PIECE_ROWS
    put_piece = CacheWriter.put_piece

    def note(what: str, piece: int) -> None:
        with (folder / "log").open("a") as file:  # one write: lines of processes do not mix
            file.write(f"{what} {piece} {os.getpid()}\n")

    def noted(self, piece, *rest, **more):
        note("begin", piece)
        while (folder / "hold").exists():
            time.sleep(0.02)
        put_piece(self, piece, *rest, **more)
        note("end", piece)

    CacheWriter.put_piece = noted


@dataclass(frozen=True)
class Notes:
    """What the processes have written down."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """For processes that shall take notes."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return {"NOTED": str(self.folder), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def lines(self) -> list[list[str]]:
        log = self.folder / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def pids(self) -> list[int]:
        """The processes that have begun a piece, in their order."""
        return list(dict.fromkeys(int(pid) for what, _, pid in self.lines() if what == "begin"))

    def count(self, what: str) -> Counter:
        """How often each piece was begun, or ended."""
        return Counter(int(piece) for said, piece, _ in self.lines() if said == what)

    def hold(self) -> None:
        (self.folder / "hold").touch()

    def go_on(self) -> None:
        (self.folder / "hold").unlink(missing_ok=True)

    def await_pids(self, number: int) -> list[int]:
        """Wait until so many processes have begun a piece."""
        return self.await_that(lambda: len(self.pids()) >= number) or self.pids()

    def await_that(self, seen) -> None:
        given_up = time.monotonic() + 400
        while not seen():
            assert time.monotonic() < given_up, self.lines()
            time.sleep(0.05)
