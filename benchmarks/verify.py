"""What `kdcache verify` costs beside reading the same files: the speed of the disk is the goal.

Both read every file once, front to back, with the same number of threads and into reused buffers;
verify hashes and looks at every row besides. One process times them by turns, so that a busy disk
is busy for both; what is compared is the ratio within a turn. Cold is after the kernel was told to
forget the files (POSIX_FADV_DONTNEED), which a device with a cache of its own may not be.

    python benchmarks/verify.py FOLDER                      # makes a cache there, and removes it
    python benchmarks/verify.py FOLDER --json result.json   # and writes the figures behind it
"""

import argparse
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record import describe_machine, forget, in_words, processor, random_cache, seconds, spread

from kdcache.store import open_cache
from kdcache.verify import verify_cache
from kdcache.verify.check import THREADS
from kdcache.verify.read import BUFFER_BYTES

DIM = 128


def read_all(files: list[Path]) -> None:
    """Read files and do nothing with them."""
    local = threading.local()

    def read(path: Path) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = bytearray(BUFFER_BYTES)
        with path.open("rb", buffering=0) as file:
            while file.readinto(local.buffer):
                pass

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, files))


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """All figures; times in seconds."""
    manifest = open_cache(path).manifest
    files = [path / name for name in manifest.files]
    num_bytes = sum(file.num_bytes for file in manifest.files.values())

    def verify() -> None:
        assert verify_cache(path).whole

    forms: dict[str, Callable[[], None]] = {"read": lambda: read_all(files), "verify": verify}
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for state in ("cold", "warm"):
            for form in sorted(forms, reverse=bool(turn % 2)):
                if state == "cold":
                    forget(files)
                took = seconds(forms[form])
                if turn:  # the first one warms up
                    times.setdefault((state, form), []).append(took)
    results: dict[str, Any] = {}
    for state in ("cold", "warm"):
        pairs = list(zip(times[state, "read"], times[state, "verify"], strict=True))
        results[state] = {
            "read_bytes_per_s": spread([num_bytes / took for took, _ in pairs]),
            "verify_bytes_per_s": spread([num_bytes / took for _, took in pairs]),
            "speed_ratio": spread([read / verify for read, verify in pairs]),
        }
    started = time.process_time()
    verify()
    cpu_s = time.process_time() - started
    quick = [seconds(lambda: verify_cache(path, quick=True)) for _ in range(rounds)]
    return {
        "bytes": num_bytes,
        "files": len(files),
        "threads": THREADS,
        "results": results,
        "verify_bytes_per_cpu_s": num_bytes / cpu_s,
        "quick_s": spread(quick),
        "machine": describe_machine(processor=processor(), numpy=np.__version__),
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people: medians, quartiles in brackets."""
    lines = [f"{'files':<6} {'read MB/s':>10} {'verify MB/s':>12}  verify / read"]
    for state, figures in result["results"].items():
        ratio = figures["speed_ratio"]
        lines.append(
            f"{state:<6} {figures['read_bytes_per_s']['median'] / 1e6:>10,.0f} "
            f"{figures['verify_bytes_per_s']['median'] / 1e6:>12,.0f}  "
            f"{in_words(ratio)}"
        )
    machine = result["machine"]
    lines.append(
        f"{result['bytes'] / 1e6:,.0f} MB in {result['files']} files, {result['threads']} threads; "
        f"{result['verify_bytes_per_cpu_s'] / 1e6:,.0f} MB a CPU second; "
        f"--quick {result['quick_s']['median']:.2f} s; {machine['processor']}, "
        f"{machine['cores']} cores, load {machine['load_average'][0]:.1f}, {machine['date']}"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="on the disk in question; a cache is made there")
    parser.add_argument("--megabytes", type=int, default=512, help="size of the cache")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="turns")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    path = args.folder / "benchmark-verify"
    try:
        num_rows = (args.megabytes << 20) // (2 * DIM * args.views)
        random_cache(path, num_rows=num_rows, num_views=args.views, dim=DIM)
        result = measure(path, args.rounds)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
