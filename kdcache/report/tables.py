"""The report's tables as text: what the page, Markdown and CSV all show."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdcache.evals.ledger import KeptScore
from kdcache.report.compare import Beside, beside, teacher_text, views_text
from kdcache.report.cost import Cost
from kdcache.report.read import RunFacts
from kdcache.report.timing import timing_of
from kdcache.table import format_table

TITLE = "# kdcache report"


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def runs_table(runs: Sequence[RunFacts]) -> Table:
    """What was run."""
    head = ("run", "method", "student", "teacher", "views", "training", "learned from", "versions",
            "state")  # fmt: skip
    return Table(f"What was run: {len(runs)} runs", head, tuple(_run_row(run) for run in runs))


def _run_row(run: RunFacts) -> tuple[str, ...]:
    images = f" of {run.num_images:,} images" if run.num_images else ""
    return (
        run.name,
        run.method,
        f"{run.student}, {run.image_size} px",
        teacher_of(run),
        views_of(run),
        f"{run.epochs:,} epochs{images}, seed {run.seed}",
        learned_from(run),
        versions_of(run),
        "; ".join([run.state, *run.notes]),
    )


def teacher_of(run: RunFacts) -> str:
    """Every teacher by name and image size."""
    if not run.taught_by:
        return "none"
    names = [
        "not recorded" if t.name is None else f"{t.name}, {t.image_size} px" for t in run.taught_by
    ]
    return " and ".join(names) + (", asked live" if run.record.get("online") else "")


def views_of(run: RunFacts) -> str:
    """How many views of which policy."""
    if not run.taught_by:
        return f"{run.policy}, new in every epoch"
    if run.views is None:
        return f"{run.policy}, number not recorded"
    return f"{run.views} x {run.policy}"


def learned_from(run: RunFacts) -> str:
    """The caches' identities, or the images' fingerprint, as far as people compare them."""
    if run.taught_by:
        return "cache " + " and ".join(t.identity[:12] for t in run.taught_by)
    return f"images {run.images[:12]}"


def versions_of(run: RunFacts) -> str:
    """The versions that a reader asks for first."""
    versions = run.record.get("versions", {})
    names = [f"{name} {versions[name]}" for name in ("kdcache", "torch") if name in versions]
    return ", ".join(names) or "not recorded"


def score_tables(runs: Sequence[RunFacts]) -> list[Table]:
    """The scores, a table for each set of labelled images: other images, other tables."""
    return [_score_table(runs, fingerprint) for fingerprint in data_sets(runs)]


def data_sets(runs: Sequence[RunFacts]) -> list[str]:
    """Fingerprints of the labelled images that any run was scored on."""
    return list(dict.fromkeys(s.data_fingerprint for run in runs for s in run.scores))


def score_key(score: KeptScore) -> str:
    """The name of a column."""
    return f"{score.label} {score.metric}"


def _score_table(runs: Sequence[RunFacts], fingerprint: str) -> Table:
    on_this = {
        run.name: {score_key(s): s for s in run.scores if s.data_fingerprint == fingerprint}
        for run in runs
    }
    every = [score for scores in on_this.values() for score in scores.values()]
    keys = list(dict.fromkeys(score_key(score) for score in every))
    units = {score_key(score): score.unit for score in every}
    counts = sorted({(s.num_queries, s.num_classes) for s in every})
    caption = (
        f"Scores on {every[0].data} (fingerprint {fingerprint[:12]}; "
        + ", ".join(f"{queries:,} images of {classes:,} classes" for queries, classes in counts)
        + ")"
    )
    head = ("run", *(f"{key}, %" if units[key] == "percent" else key for key in keys))
    rows = tuple(
        (name, *(score_text(scores.get(key)) for key in keys)) for name, scores in on_this.items()
    )
    return Table(caption, head, rows)


def score_text(score: KeptScore | None) -> str:
    """A cell; a score of an older student says so."""
    if score is None:
        return "-"
    return f"{score.text} (stale: of an older student)" if score.stale else score.text


def beside_table(pairs: Iterable[Beside], caption: str) -> Table:
    """Measured and published, side by side, and why they are not the same thing."""
    head = ("run", "metric", "measured, %", "published, %", "of", "preset", "epochs", "views",
            "teacher", "read in", "what differs here")  # fmt: skip
    return Table(caption, head, tuple(_beside_row(pair) for pair in pairs))


def _beside_row(pair: Beside) -> tuple[str, ...]:
    figure = pair.figure
    mark = "" if figure.verified else "UNVERIFIED, from memory: "
    return (
        pair.run.name,
        figure.metric,
        f"{pair.score.text}" if pair.score else "not measured",
        f"{figure.value:g}" + ("" if figure.verified else " UNVERIFIED"),
        f"{figure.method} {figure.student}",
        figure.preset or ("not stated" if figure.metric.startswith("linear") else "-"),
        str(figure.epochs) if figure.epochs else "not stated",
        views_text(figure),
        teacher_text(figure),
        f"{mark}{figure.source} [{figure.evidence}]",
        "; ".join(pair.differences),
    )


def timing_table(runs: Sequence[RunFacts]) -> Table:
    """Where the time went."""
    head = ("run", "images/s, overall", "slowest to fastest record", "time per epoch",
            "training time", "steps with a record")  # fmt: skip
    rows = []
    for run in runs:
        timing = timing_of(run)
        if timing is None:
            rows.append((run.name, *("-" for _ in head[1:])))
            continue
        rows.append(
            (
                run.name,
                f"{timing.images_per_s:.3g}",
                f"{timing.slowest:.3g} to {timing.fastest:.3g}",
                span(timing.epoch_s),
                span(timing.total_s),
                f"{timing.num_steps:,}",
            )
        )
    return Table("Where the time went", head, tuple(rows))


def cost_table(runs: Sequence[RunFacts], costs: Sequence[Cost | None]) -> Table:
    """What the students cost whoever uses them."""
    head = ("run", "student", "parameters, M", "MACs of an image, M")
    rows = [
        (run.name, f"{run.student}, {run.image_size} px")
        + (
            (f"{cost.num_parameters / 1e6:.2f}", f"{cost.num_macs / 1e6:.1f}")
            if cost
            else ("not known to this timm",) * 2
        )
        for run, cost in zip(runs, costs, strict=True)
    ]
    return Table("What the students cost", head, tuple(rows))


def span(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def warnings(runs: Sequence[RunFacts]) -> list[str]:
    """What keeps these runs from being compared with one another, in sentences."""
    taught, alone = [r for r in runs if r.taught_by], [r for r in runs if not r.taught_by]
    kinds: dict[str, Sequence[object]] = {
        "sets of labelled images": data_sets(runs),
        "caches": [run.images for run in taught],
        "sets of training images": [run.images for run in alone],
        "numbers of epochs": [run.epochs for run in runs],
        "students": [(run.student, run.image_size) for run in runs],
        "sets of versions": [versions_of(run) for run in runs],
    }
    counts = {what: len(set(values)) for what, values in kinds.items()}
    differ = [f"{count} different {what}" for what, count in counts.items() if count > 1]
    found = [f"These runs have {', '.join(differ)}."] if differ else []
    if taught and alone:
        found.append("Whether runs with and without a cache saw the same images is not recorded.")
    return found


def markdown(runs: Sequence[RunFacts]) -> str:
    """All tables of numbers as Markdown."""
    parts = [TITLE]
    if differ := warnings(runs):
        parts.append("Compare with care. " + " ".join(differ))
    pairs = [pair for run in runs for pair in beside(run) if pair.same_student]
    tables = [runs_table(runs), *score_tables(runs), timing_table(runs)]
    if pairs:
        tables.append(beside_table(pairs, "Published figures; none was measured here"))
    for table in tables:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
        parts.append(f"## {table.caption}\n\n{format_table(table.head, rows)}")
    if not data_sets(runs):
        parts.append("No scores are kept yet: `kdcache eval RUN --data DIR` adds them.")
    return "\n\n".join(parts) + "\n"


CSV_HEAD = ("run", "method", "student", "image_size", "teacher", "policy", "views", "epochs",
            "num_images", "seed", "caches", "images", "kdcache", "torch", "finished", "step",
            "epoch", "loss", "protocol", "setting", "metric", "value", "unit", "num_queries",
            "num_classes", "data", "data_fingerprint", "parameters_sha256", "stale")  # fmt: skip


def comma_separated(runs: Sequence[RunFacts]) -> str:
    """A row for each score, with all of its run; a run without scores has one row."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow(CSV_HEAD)
    for run in runs:
        for score in run.scores or (None,):
            write.writerow([*_csv_run(run), *_csv_score(score)])
    return text.getvalue()


def _csv_run(run: RunFacts) -> list[object]:
    versions = run.record.get("versions", {})
    last = next((r for r in reversed(run.records) if "loss" in r), {})
    return [
        run.name,
        run.method,
        run.student,
        run.image_size,
        " ".join(t.name or "" for t in run.taught_by),
        run.policy,
        "" if run.views is None else run.views,
        run.epochs,
        run.num_images or "",
        run.seed,
        " ".join(t.identity for t in run.taught_by),
        "" if run.taught_by else run.images,
        versions.get("kdcache", ""),
        versions.get("torch", ""),
        run.finished,
        f"{last['step']:.0f}" if last else "",
        last.get("epoch", ""),
        last.get("loss", ""),
    ]


def _csv_score(score: KeptScore | None) -> list[object]:
    if score is None:
        return [""] * 11
    setting = " ".join(f"{name}={value}" for name, value in score.setting.items())
    return [score.protocol, setting, score.metric, score.value, score.unit, score.num_queries,
            score.num_classes, score.data, score.data_fingerprint, score.parameters_sha256,
            score.stale]  # fmt: skip
