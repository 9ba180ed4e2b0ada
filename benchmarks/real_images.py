"""What the methods are worth on real images, by the commands that a user types.

    python benchmarks/real_images.py methods --data tiny50 --weights lite0.safetensors --out OUT
    python benchmarks/real_images.py views   ...     # accuracy against the number of cached views
    python benchmarks/real_images.py parity  ...     # a cache against its teacher live

Every step is a `kdcache` command, printed as it starts, whose result stays in OUT: the same call
goes on where it stopped. `--data` holds train/ and val/ in ImageFolder layout.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdcache.methods import get_method

TEACHER = "timm:tf_efficientnet_lite0"
TEACHER_SIZE = 128
STUDENT_SIZE = 64
PAPERS = ("seed", "disco", "simreg", "retro")
KIN = ("compress", "compress_1q", "bingo", "coss", "vkd", "lightly")
FRESH_VIEWS = 30
"""As many as the epochs of a run: every epoch shows new ones."""

# Where a short run on 10,000 images wants other settings than a long one on a million: smaller
# batches for more steps, one schedule for all, queues below half of the images, a faster slow
# copy, centred targets. The rates of simreg, seed, moco and vkd are the best of a few in runs
# of six epochs; the others have 0.1 or 0.2 (docs/results.md).
SHORT: dict[str, object] = {
    "train.batch_size": 64,
    "train.lr_per_256": "false",
    "train.lr": 0.1,
    "train.schedule": "cosine",
    "train.per_step": "true",
    "train.warmup_epochs": 1,
    "train.first_epoch": 0,
}
QUEUE = {"method.queue": 4096}
SLOW = {"method.momentum": 0.99}
OWN: dict[str, dict[str, object]] = {
    "moco": {**QUEUE, **SLOW},
    "seed": {**QUEUE, "method.teacher_temperature": 0.04},
    "disco": {**QUEUE, **SLOW},
    "retro": {**QUEUE, **SLOW},
    "simreg": {"method.center": "true", "train.lr": 0.2},
    "compress": {**QUEUE, **SLOW},
    "compress_1q": QUEUE,
    "bingo": {**QUEUE, "method.bag_from_epoch": 2},
    "coss": {"train.lr": 0.2},
    "vkd": {"train.lr": 3.0},
    "lightly": QUEUE,
}


@dataclass(frozen=True)
class Bench:
    """Where things are, and how much runs at a time."""

    data: Path
    weights: Path
    out: Path
    jobs: int
    epochs: int
    seeds: int
    num_views: int

    def kdcache(self, *arguments: object, threads: int | None = None) -> str:
        """Run a command; its standard output."""
        command = [sys.executable, "-m", "kdcache_cli", *map(str, arguments)]
        print("kdcache", shlex.join(command[3:]), flush=True)
        count = threads or max(1, (os.cpu_count() or 1) // self.jobs)
        log = self.out / "log.txt"
        with log.open("a") as errors:
            done = subprocess.run(
                command,
                env={**os.environ, "OMP_NUM_THREADS": str(count)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        if done.returncode:
            raise SystemExit(f"that failed with exit code {done.returncode}: see {log}")
        return done.stdout

    def cache(self, policy: str) -> Path:
        """The teacher's words on a policy's views, with a head and a graph; made if missing."""
        return self.extracted(policy, self.out / f"{policy}.zarr", self.num_views, "bf16")

    def extracted(
        self, policy: str, out: Path, num_views: int, precision: str, dtype: str = "float16"
    ) -> Path:
        """A cache; what is there already is left alone."""
        if not (out / "manifest.json").exists():
            self.kdcache(
                "extract", "--teacher", TEACHER, "--weights", self.weights, "--data",
                self.data / "train", "--views", num_views, "--policy", policy, "--image-size",
                TEACHER_SIZE, "--dtype", dtype, "--precision", precision, "--out", out,
            )  # fmt: skip
            self.kdcache("neighbours", out)
            if policy == "moco_v2":  # those that learn from an embedding see its views
                self.kdcache("head", out)
        return out

    def student(self, method: str, student: str, seed: int, **more: object) -> dict[str, float]:
        """Train and evaluate one student: kNN (k = 10) and linear, in percent."""
        name = "-".join([method, student, *(f"{k.split('.')[1]}{v}" for k, v in more.items())])
        cache = self.cache(get_method(method).views) if method != "moco" else None
        run = self.train(method, student, seed, name, cache, **more)
        return self.score(str(run), run / "scores.json")

    def train(
        self,
        method: str,
        student: str,
        seed: int,
        name: str,
        cache: Path | None,
        *options: object,
        **more: object,
    ) -> Path:
        """Train one student; its run's folder."""
        run = self.out / f"{name}-{seed}"
        settings = {
            **SHORT,
            **OWN[method],
            "student.image_size": STUDENT_SIZE,
            "train.epochs": self.epochs,
            "run.seed": seed,
            **more,
        }
        command: list[object] = ["train", "--method", method, "--student", student, "--out", run]
        command += ["--data", self.data / "train", "--workers", 0, *options]
        if cache is not None:
            command += ["--cache", cache]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        self.kdcache(*command)
        return run

    def score(self, subject: str, kept: Path, *more: object) -> dict[str, float]:
        """kNN and linear accuracy of a network, kept in a file."""
        if not kept.exists():
            command = ["eval", subject, "--data", self.data, "--policy", "full", "--json"]
            text = self.kdcache(*command, "--workers", 0, *more)
            kept.write_text(text)
        (scores,) = json.loads(kept.read_text()).values()  # of the one subject
        knn = next(s for s in scores if s["protocol"] == "knn" and s["setting"]["k"] == 10)
        linear = next(s for s in scores if s["protocol"] == "fast-linear" and s["metric"] == "top1")
        return {"knn": knn["value"], "linear": linear["value"]}


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def table(
    bench: Bench, name: str, jobs: dict[str, tuple[str, str, dict[str, object]]]
) -> dict[str, list[dict[str, float]]]:
    """Train every job with every seed, some at a time, and print a row for each: its scores."""
    seeds = range(bench.seeds)
    with ThreadPoolExecutor(bench.jobs) as pool:
        # Seed by seed, so that a table of all rows is there early.
        futures = {
            (row, seed): pool.submit(bench.student, method, student, seed, **more)
            for seed in seeds
            for row, (method, student, more) in jobs.items()
        }
        rows = {row: [futures[row, seed].result() for seed in seeds] for row in jobs}
    print(f"\n| % on val, {bench.epochs} epochs, {bench.seeds} seeds | kNN, k = 10 | linear |")
    print("|---|---:|---:|")
    for row, scores in rows.items():
        knn, linear = ([score[key] for score in scores] for key in ("knn", "linear"))
        print(f"| {row} | {spread(knn)} | {spread(linear)} |")
    (bench.out / f"{name}.json").write_text(json.dumps(rows, indent=1))
    return rows


def methods(bench: Bench, names: Sequence[str], student: str, precision: str | None) -> None:
    """Every method with the same student, epochs and images."""
    for policy in sorted({get_method(name).views for name in names if name != "moco"}):
        bench.cache(policy)
    untrained = ("--image-size", STUDENT_SIZE)
    found = bench.score(f"untrained:{student}", bench.out / f"untrained-{student}.json", *untrained)
    print(f"untrained {student}: kNN {found['knn']:.1f}, linear {found['linear']:.1f}")
    more = {"run.precision": precision} if precision is not None else {}
    table(bench, "methods", {name: (name, student, more) for name in names})


CURVES = ("simreg", "seed")
COLOURS = ("#0072b2", "#d55e00")
"""Okabe and Ito's (jfly.uni-koeln.de/color, 2008)."""


def views(bench: Bench, student: str) -> None:
    """SimReg and SEED on 1, 2, 4, 8, 16 views of a cache, and on new ones in every epoch."""
    counts = [*(n for n in (1, 2, 4, 8, 16) if n < bench.num_views), bench.num_views]
    jobs = {}
    for method in CURVES:
        bench.cache(get_method(method).views)
        for count in counts:
            more = {"run.views": count} if count < bench.num_views else {}
            jobs[f"{method}, {count} views"] = (method, student, more)
    rows = table(bench, "views", jobs)
    curves = {
        method: [statistics.mean(s["knn"] for s in rows[f"{method}, {n} views"]) for n in counts]
        for method in CURVES
    }
    draw(curves, counts, bench.out / "views.svg")


def draw(curves: dict[str, list[float]], counts: Sequence[int], out: Path) -> None:
    """Accuracy against the number of cached views, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "views", "font.size": 12})
    figure = Figure((6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (method, values), colour, marker in zip(curves.items(), COLOURS, "os", strict=True):
        axes.plot(counts[:-1], values[:-1], color=colour, marker=marker, linewidth=2, label=method)
        axes.axhline(values[-1], color=colour, linestyle="--", linewidth=1)
    axes.plot([], color="grey", linestyle="--", linewidth=1, label="new views in every epoch")
    axes.legend(loc="lower right", frameon=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts[:-1], [str(n) for n in counts[:-1]])
    axes.set_ylim(0, None)
    axes.set_xlabel("cached views of each image")
    axes.set_ylabel("kNN, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(out, metadata={"Date": None, "Creator": None})


PARITY = {
    "train.batch_size": 50,
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "run.views": 2,
    "run.log_every": 1,
}
"""200 steps: one epoch of 10,000 images."""


def parity(bench: Bench, student: str) -> None:
    """A float32 and a float16 cache against the teacher live, in the first steps of a run.

    The loss curves of float32 and live are compared step by step, the students of float16 and live
    by kNN.
    """
    print("\n| method | steps | loss, float32 against live | kNN, float16 | kNN, live |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for method in PAPERS:
        policy = get_method(method).views
        short, exact = (
            bench.extracted(policy, bench.out / f"parity-{policy}-{dtype}.zarr", 2, "fp32", dtype)
            for dtype in ("float16", "float32")
        )
        live = ("--online", "--weights", bench.weights)
        sources: list[tuple[str, Path, tuple[object, ...], int]] = [
            ("live", exact, live, bench.seeds),
            ("float32", exact, (), 1),
            ("float16", short, (), bench.seeds),
        ]
        with ThreadPoolExecutor(bench.jobs) as pool:
            futures = {
                (kind, seed): pool.submit(
                    bench.train, method, student, seed, f"parity-{method}-{kind}", cache, *options,
                    **PARITY,
                )
                for kind, cache, options, seeds in sources
                for seed in range(seeds)
            }  # fmt: skip
            runs = {key: future.result() for key, future in futures.items()}
        losses = [losses_of(runs[kind, 0]) for kind in ("float32", "live")]
        apart = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
        knn = {
            kind: [
                bench.score(str(runs[kind, seed]), runs[kind, seed] / "scores.json")["knn"]
                for seed in range(bench.seeds)
            ]
            for kind in ("float16", "live")
        }
        print(
            f"| {method} | {len(losses[0])} | {apart:.1e} "
            f"| {spread(knn['float16'])} | {spread(knn['live'])} |",
            flush=True,
        )


def losses_of(run: Path) -> list[float]:
    """A run's loss in every step."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records]


def main() -> None:
    """Read the command line and run one of the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", choices=["methods", "views", "parity"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="mobilenetv3_small_100")
    parser.add_argument("--methods", default=",".join(("moco", *PAPERS, *KIN)))
    parser.add_argument("--precision", help="of the students in `methods`; else what kdcache takes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", type=int, default=FRESH_VIEWS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        given.data, given.weights, given.out, given.jobs, given.epochs, given.seeds, given.views
    )
    if given.table == "methods":
        methods(bench, given.methods.split(","), given.student, given.precision)
    elif given.table == "views":
        views(bench, given.student)
    else:
        parity(bench, given.student)


if __name__ == "__main__":
    main()
