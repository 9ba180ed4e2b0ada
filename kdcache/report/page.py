"""The page: one HTML file that needs no network, no script and no font of its own."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import kdcache
from kdcache.errors import ConfigError
from kdcache.evals.ledger import KeptScore
from kdcache.progress import Bar
from kdcache.report import tables
from kdcache.report.compare import beside
from kdcache.report.cost import Cost, count_cost
from kdcache.report.curves import curve_groups, num_curves
from kdcache.report.drawing import NUM_STYLES, Dots, Picture, draw_dots, draw_map, draw_sign
from kdcache.report.read import RunFacts
from kdcache.report.space import Space


def render_page(runs: Sequence[RunFacts], space: Space | None, bar: Bar) -> str:
    """The whole page; the same runs give the same bytes."""
    loader = PackageLoader("kdcache.report", ".")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "drawn": _drawn, "fresh": _fresh_names()}
    costs = [_cost(run) for run in runs]
    with bar("report", total=num_curves(runs), unit="curves") as progress:
        pairs = [pair for run in runs for pair in beside(run)]
        text = environment.get_template("page.html.jinja").render(
            css=Markup(_read("page.css")),
            version=kdcache.__version__,
            runs=runs,
            facts=_facts(runs),
            differ=tables.warnings(runs),
            signs=_signs(runs),
            runs_table=tables.runs_table(runs),
            score_tables=tables.score_tables(runs),
            figures=tables.beside_table(
                [p for p in pairs if p.same_student and p.score],
                "Published figures of the same method and student",
            ),
            folded_figures=[
                tables.beside_table(
                    [p for p in pairs if p.same_student and not p.score],
                    "Others of the same method and student, not measured here",
                ),
                tables.beside_table(
                    [p for p in pairs if not p.same_student],
                    "The same methods with other students, for runs whose own nobody reports",
                ),
            ],
            groups=curve_groups(runs, progress),
            cost_table=tables.cost_table(runs, costs),
            trades=_trades(runs, costs),
            timing_table=tables.timing_table(runs),
            space=space,
            maps=_maps(space) if space else [],
            class_signs=_class_signs(space) if space else [],
            teachers_table=_teachers(runs),
            records=[json.dumps(run.record, indent=2, sort_keys=True) for run in runs],
        )
    return str(text).replace("\r", "")


def _breakable(text: str) -> Markup:
    """The text, with places where a long name may go on in a new line."""
    return Markup(re.sub(r"(?<=[_/=+])(?=\w)", "<wbr>", str(escape(text))))


def _drawn(picture: Picture) -> Markup:
    """The picture with its words, for those who do not see it."""
    words = f'role="img" aria-label="{escape(picture.title)}. {escape(picture.text)}"'
    return Markup(picture.svg.replace("<svg ", f"<svg {words} ", 1))


def _fresh_names() -> Callable[[Markup], Markup]:
    """A legend comes more than once on a page, and a name inside of a drawing must not."""
    numbers = itertools.count()

    def fresh(svg: Markup) -> Markup:
        number = next(numbers)
        return Markup(re.sub(r'(id="|#)([mp][0-9a-f]{10})', rf"\1\2-{number}", str(svg)))

    return fresh


def _sign(style: int, *, line: bool) -> Markup:
    """A legend's sign, which says nothing that the name beside it does not."""
    return Markup(draw_sign(style, line=line).replace("<svg ", '<svg aria-hidden="true" ', 1))


def _read(name: str) -> str:
    return resources.files("kdcache.report").joinpath(name).read_text(encoding="utf-8")


def _facts(runs: Sequence[RunFacts]) -> str:
    num_finished = sum(run.finished for run in runs)
    num_scored = sum(bool(run.scores) for run in runs)
    what = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{what}: {num_finished} finished, {num_scored} with scores"


def _signs(runs: Sequence[RunFacts]) -> list[tuple[Markup, str]]:
    """The legend of pictures that runs share; none where each run has its own pictures."""
    if len(runs) > NUM_STYLES:
        return []
    return [(_sign(i, line=True), run.name) for i, run in enumerate(runs)]


def _cost(run: RunFacts) -> Cost | None:
    """None for a student that this timm does not have: an old run is still worth its row."""
    try:
        return count_cost(run.student, run.image_size)
    except ConfigError:
        return None


def _trades(runs: Sequence[RunFacts], costs: Sequence[Cost | None]) -> list[Picture]:
    """For each set of labelled images, its first kNN and linear accuracy against what is paid."""
    pictures = []
    for data in tables.data_sets(runs):
        of_data = [
            {tables.score_key(s): s for s in run.scores if s.data_fingerprint == data}
            for run in runs
        ]
        for key in _main_scores([s for scores in of_data for s in scores.values()]):
            for what, attribute, label in (
                ("parameters", "num_parameters", "parameters, M (logarithmic)"),
                ("MACs", "num_macs", "MACs of an image, M (logarithmic)"),
            ):
                known = [
                    (i, getattr(cost, attribute) / 1e6, scores[key])
                    for i, (cost, scores) in enumerate(zip(costs, of_data, strict=True))
                    if cost is not None and key in scores and not scores[key].stale
                ]
                if known:
                    pictures.append(_trade(runs, known, key, what, label))
    return pictures


def _main_scores(scores: Sequence[KeptScore]) -> list[str]:
    """The first top-1 of kNN and of each linear probe: what papers draw."""
    first: dict[str, str] = {}
    for score in scores:
        if score.metric == "top1" and score.protocol in ("knn", "linear", "fast-linear"):
            first.setdefault(score.protocol, tables.score_key(score))
    return list(first.values())


def _trade(
    runs: Sequence[RunFacts],
    known: Sequence[tuple[int, float, KeptScore]],
    key: str,
    what: str,
    label: str,
) -> Picture:
    several = len(runs) > NUM_STYLES
    dots = [Dots(0 if several else i, np.array([[x, s.value]])) for i, x, s in known]
    text = ". ".join(f"{runs[i].name}: {s.text} % at {x:.1f} M" for i, x, s in known)
    title = f"{key} on {known[0][2].data} against {what}"
    name = f"trade-{what}-{known[0][2].data_fingerprint[:8]}-{key}".replace(" ", "-").lower()
    return draw_dots(name, title, dots, x_label=label, y_label="%", text=text)


def _shown_classes(space: Space) -> list[int]:
    """Up to eight classes, evenly over all: more could not be told apart."""
    there = np.unique(space.labels[space.labels >= 0])
    places = np.linspace(0, len(there) - 1, min(len(there), NUM_STYLES)).astype(int)
    return [int(there[place]) for place in np.unique(places)] if len(there) else []


def _class_signs(space: Space) -> list[tuple[Markup, str]]:
    return [
        (_sign(i, line=False), space.classes[label])
        for i, label in enumerate(_shown_classes(space))
    ]


def _maps(space: Space) -> list[Picture]:
    """One map a network, all with the same axes."""
    if not space.seers:
        return []
    half = 1.05 * max(float(np.abs(seer.points).max()) for seer in space.seers) or 1.0
    shown = _shown_classes(space)
    pictures = []
    for n, seer in enumerate(space.seers):
        others = Dots(None, seer.points[~np.isin(space.labels, shown)])
        dots = [others, *(Dots(i, seer.points[space.labels == c]) for i, c in enumerate(shown))]
        share = f"{100 * seer.explained:.0f} % of the variance"
        text = f"{len(seer.points):,} images as points; the two axes hold {share}"
        pictures.append(draw_map(f"map-{n}", f"{seer.name}, {share}", dots, half=half, text=text))
    return pictures


def _teachers(runs: Sequence[RunFacts]) -> tables.Table:
    """Every cache that any run learned from: who spoke, about what, under which licence."""
    known: dict[str, list[str]] = {}
    rows = {}
    for run in runs:
        for taught in run.taught_by:
            known.setdefault(taught.identity, []).append(run.name)
            missing = "not recorded"
            rows[taught.identity] = (
                taught.identity,
                f"{taught.name}, {taught.image_size} px" if taught.name else missing,
                taught.weights_source or missing,
                taught.weights_sha256 or missing,
                taught.licence or "not known",
                f"{taught.views} x {taught.policy}" if taught.views else missing,
                f"{taught.images:,}" if taught.images else missing,
            )
    head = ("cache identity", "teacher", "weights from", "weights SHA-256",
            "licence of the weights", "views", "images", "runs")  # fmt: skip
    return tables.Table(
        "Caches and teachers",
        head,
        tuple((*row, ", ".join(known[identity])) for identity, row in rows.items()),
    )
