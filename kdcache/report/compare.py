"""Published figures beside measured ones, and in words what keeps the two from being compared.

A figure is put beside a run because the method is the same. Whether they compare is another matter,
which depends on data, epochs, protocol, teacher, views and sizes: every known difference is named,
and what the publication did not state is said to be unknown. No two are ever called comparable.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kdcache.evals.ledger import KeptScore
from kdcache.published import Figure, published
from kdcache.report.read import RunFacts

_PUBLISHED_SIZE = 224
_IMAGENET_CLASSES, _IMAGENET_QUERIES = 1000, 50_000


@dataclass(frozen=True)
class Beside:
    """A published figure and what was measured, if it was."""

    run: RunFacts
    figure: Figure
    score: KeptScore | None
    differences: tuple[str, ...]

    @property
    def same_student(self) -> bool:
        """Whether the figure is of this run's student."""
        return self.figure.student == _architecture(self.run)


def metric_of(score: KeptScore) -> str | None:
    """The registry's word for what a score measures; None where papers report no such thing.

    Semi-supervised and transfer figures are not matched: frozen and fine-tuned ones, and other
    shares of labels, would be taken for each other.
    """
    if score.protocol == "knn":
        return f"knn{score.setting.get('k')}" if score.metric == "top1" else None
    words = {("linear", "top1"): "linear", ("linear", "top5"): "linear_top5",
             ("cluster", "top1"): "cluster"}  # fmt: skip
    return words.get((score.protocol, score.metric))


def beside(run: RunFacts) -> list[Beside]:
    """The published figures of the run's method, each with every score of the same metric.

    Those of the run's own student; where nobody reports any, those of the method's other students.
    """
    of_method = published(run.method)
    own = [figure for figure in of_method if figure.student == _architecture(run)]
    return [
        Beside(run, figure, score, tuple(_differences(run, figure, score)))
        for figure in own or of_method
        for score in _scores_of(run, figure.metric)
    ]


def _scores_of(run: RunFacts, metric: str) -> list[KeptScore | None]:
    scores = [s for s in run.scores if not s.stale and metric_of(s) == metric]
    return [*scores] or [None]


def _architecture(run: RunFacts) -> str:
    return run.student.partition(".")[0]


def _differences(run: RunFacts, figure: Figure, score: KeptScore | None) -> Iterator[str]:
    """What is otherwise here, each with what the publication has or leaves unsaid."""
    yield "not measured" if score is None else _data(figure, score)
    if figure.student != _architecture(run):
        yield f"another student: {run.student}"
    if figure.epochs is None:
        yield f"{run.epochs} epochs, theirs are not stated"
    elif figure.epochs != run.epochs:
        yield f"{run.epochs} epochs, not {figure.epochs}"
    if score is not None and figure.metric.startswith("linear"):
        yield from _protocol(figure, score)
    if run.image_size != _PUBLISHED_SIZE:
        yield f"{run.image_size} px, not {_PUBLISHED_SIZE}"
    yield from _teacher(run, figure)
    if not run.finished:
        yield "the run is not finished"
    if figure.variant:
        yield f"not their variant `{figure.variant}`"
    if figure.note:
        yield f"their note: {figure.note}"


def _data(figure: Figure, score: KeptScore) -> str:
    here = f"{score.data} ({score.num_classes:,} classes, {score.num_queries:,} images)"
    if (score.num_classes, score.num_queries) == (_IMAGENET_CLASSES, _IMAGENET_QUERIES):
        return f"data: {here}, not checked to be the images of {figure.dataset}"
    return f"other data: {here}, not {figure.dataset}"


def _protocol(figure: Figure, score: KeptScore) -> Iterator[str]:
    here = str(score.setting.get("preset", "not named"))
    if not figure.preset:
        yield f"protocol `{here}`, theirs is not stated"
    elif figure.preset != here:
        yield f"protocol `{here}`, not `{figure.preset}`"
    cached = score.setting.get("features")
    if cached:
        yield f"a linear layer on: {cached}, not on augmented views"


def _teacher(run: RunFacts, figure: Figure) -> Iterator[str]:
    if figure.teacher is None and not run.taught_by:
        return
    here = " and ".join(t.name or "not recorded" for t in run.taught_by) or "none"
    yield f"teacher: {here}, not checked to be theirs"
    if run.taught_by and run.record.get("online") is not True:
        views = run.views if run.views is not None else "a number not recorded of"
        yield f"{views} views from a cache"


def views_text(figure: Figure) -> str:
    """Which views a published student learned from.

    *Source:* the official code asks the teacher live, on views drawn anew, except for rows whose
    note says that targets were stored (`methods.md` section 9).
    """
    if figure.teacher is not None and "one stored view" in figure.note:
        return "one stored for the teacher"
    return "new in every epoch"


def teacher_text(figure: Figure) -> str:
    """The published teacher in words, with its own accuracy where it was stated."""
    teacher = figure.teacher
    if teacher is None:
        return "none"
    if teacher.network == "unstated":
        return "not stated"
    parts = [teacher.network, "by " + teacher.method if teacher.method != "unstated" else ""]
    if teacher.epochs:
        parts.append(f"{teacher.epochs} epochs")
    if teacher.top1:
        parts.append(f"({teacher.top1:g} % linear)")
    return " ".join(part for part in parts if part)
