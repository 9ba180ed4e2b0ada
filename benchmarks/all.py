"""Run every benchmark, in sizes that take less than a quarter of an hour on two cores.

Each prints its table; the figures behind it go to OUT as JSON. A GPU is used where torch sees one,
by those that have a use for it. `real_images.py` (hours) and `protocols.py` (data) are not among
them.

    make bench                                  # or python benchmarks/all.py --out bench
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import photographs

HERE = Path(__file__).parent

RUNS = {
    "rendering": "--images 16 --rounds 2",
    "lookup": "{work} --turns 5",
    "extraction": "--images 8 --rounds 2",
    "student_step": "--steps 4",
    "seed_loss": "--rounds 3 --student-rounds 2",
    "offline_online": "--cpu-time --teachers r50 --rounds 2",
    "views_per_decode": "{photographs} --images 64 --rounds 2",
    "start_up": "--rounds 2",
    "growth": "{work} --rows 10000,40000",
    "writer_scale": "{work}",
    "verify": "{work} --megabytes 256 --rounds 3",
}
"""A script's name and what it is given."""


def main() -> None:
    """Run all of them, or those that are named; the exit code says whether all came to an end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help=f"all unless given: {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="gets a JSON of each")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RUNS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(RUNS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    # One thread: what is compared shares a core then, and the other runs the rest of the system.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with tempfile.TemporaryDirectory() as work:
        pictures = photographs(Path(work) / "photographs", 64)
        for name in args.names or RUNS:
            given = RUNS[name].format(work=work, photographs=pictures).split()
            result = args.out / f"{name}.json"
            print(f"\n## {name}", flush=True)
            started = time.monotonic()
            command = [sys.executable, HERE / f"{name}.py", *given, "--json", result]
            if subprocess.run(command, env=environment).returncode:
                failed.append(name)
            print(f"({time.monotonic() - started:.0f} s)", flush=True)
    if failed:
        sys.exit(f"these failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
