"""The page is one whole file: well-formed, without addresses, and every number the files' own."""

import sys
from collections import Counter
from contextlib import nullcontext
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_folder
from report_runs import CACHE, keep, make_run, records_of, score

from kdcache.errors import ConfigError, MissingExtra
from kdcache.progress import silent_bar
from kdcache.report import HeldOut, make_report, save_report

VOID = {"meta", "wbr", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a page holds; it is an error if its tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict]] = []
        self.tags: list[tuple[str, dict]] = []
        self.ids: Counter = Counter()
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes), f"{tag} has an attribute twice: {attributes}"
        self.tags.append((tag, given))
        if "id" in given:
            self.ids[given["id"]] += 1
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        within = [tag for tag, _ in self.open]
        if "td" in within or "th" in within:
            self.tables[-1][-1][-1] += data
        if "style" not in within:
            self.words.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the table whose scrolling frame has this label."""
        labels = [a["aria-label"] for t, a in self.tags if a.get("class") == "scroll"]
        (place,) = [i for i, label in enumerate(labels) if label.startswith(caption)]
        return self.tables[place]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two finished runs, one with scores; one under way; one that has not begun."""
    root = tmp_path_factory.mktemp("runs")
    good = make_run(root / "good", "seed", student="resnet18")
    keep(good, score(12.3456), score(60.0, None))
    records = records_of()
    for epoch in (1, 2):
        at = {"step": 10 * epoch, "epoch": float(epoch), "eval/knn10": 10.0 + epoch}
        records.insert(11 * epoch - 1, at)
    records[5]["loss"] = None
    other = make_run(root / "<b>&amp;$x$", records=records, weights_seed=1)
    keep(other, score(99.0))
    half = make_run(root / "half", "moco", taught=False, finished=False, records=records_of()[:5])
    new = make_run(root / "new", finished=False, records=[])
    return [good, other, half, new]


@pytest.fixture(scope="module")
def html(folders, tmp_path_factory):
    data = make_folder(tmp_path_factory.mktemp("set") / "val", per_class=5)
    held_out = HeldOut(data, None, None, None, torch.device("cpu"), 0)
    return make_report(folders, "html", held_out=held_out, bar=silent_bar)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_page_is_one_well_formed_file_that_loads_nothing(page, html):
    assert html.startswith("<!doctype html>")
    assert len(html) < 1_000_000
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, given in page.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert given.get(name, "#").startswith(("#", "data:image/webp;base64,")), (tag, given)
        assert "url(http" not in given.get("style", "")
    css = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    (policy,) = [a["content"] for t, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_references_lead_somewhere(page):
    assert max(page.ids.values()) == 1
    for _, given in page.tags:
        if given.get("href", "").startswith("#"):
            assert given["href"][1:] in page.ids
        if "aria-labelledby" in given:
            assert given["aria-labelledby"] in page.ids
        clip = given.get("clip-path", "")
        assert not clip or clip.removeprefix("url(#").removesuffix(")") in page.ids


def test_every_picture_has_words(page):
    figures = [i for i, (tag, _) in enumerate(page.tags) if tag == "figure"]
    assert len(figures) > 8
    for i in figures:
        assert page.tags[i + 1][0] == "figcaption"
        given = next(given for tag, given in page.tags[i:] if tag == "svg")
        assert given["role"] == "img"
        assert len(given["aria-label"]) > 20
    images = [given for tag, given in page.tags if tag == "img"]
    assert images
    assert all(given["alt"] for given in images)
    signs = [given for tag, given in page.tags if tag == "svg" and given.get("role") != "img"]
    assert all(given["aria-hidden"] == "true" for given in signs)


def test_page_can_be_walked_by_keyboard_and_screen_reader(page):
    tags = [tag for tag, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert tags.count(landmark) == 1
    first_link = next(given for tag, given in page.tags if tag == "a")
    assert first_link["class"] == "skip"
    assert all(int(given.get("tabindex", 0)) <= 0 for _, given in page.tags)
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert tags.count("caption") == tags.count("table")
    for tag, given in page.tags:
        if tag == "th":
            assert given["scope"] in ("row", "col")
        if given.get("class") == "scroll":
            assert (given["tabindex"], given["role"]) == ("0", "region")
    assert page.tags[tags.index("html")][1]["lang"] == "en"


def test_tables_hold_the_numbers_of_the_files(page):
    head, *rows = page.table("Scores on pictures/val")
    assert head[1:] == ["knn (k=1, vote=plain) top1, %", "linear (preset=simreg) top1, %"]
    assert rows[0] == ["good", "12.3", "60.0"]
    assert rows[1] == ["<b>&amp;$x$", "99.0", "-"]
    runs = {row[0]: row for row in page.table("What was run")[1:]}
    assert runs["good"][3:6] == ["swav_r50, 96 px", "4 x weak", "2 epochs of 80 images, seed 3"]
    assert runs["half"][-1].startswith("not finished: step 5 of 20")
    assert runs["new"][-1] == "not begun: no metrics"
    assert "`loss` is not finite in 1 of 20 records" in runs["<b>&amp;$x$"][-1]
    costs = page.table("What the students cost")
    assert costs[1] == ["good", "resnet18, 32 px", "11.18", "37.0"]
    (cache,) = page.table("Caches and teachers")[1:]
    assert cache[0] == CACHE
    assert cache[4] == "CC-BY-NC-4.0"
    assert page.table("Where the time went")[1][1:5] == ["40", "40 to 40", "2.0 s", "4.0 s"]


def test_published_figures_carry_their_source_and_what_differs(page):
    head, *rows = page.table("Published figures of the same method")
    row = next(r for r in rows if r[:4] == ["good", "linear", "60.0", "57.6"])
    cells = dict(zip(head, row, strict=True))
    assert (cells["preset"], cells["epochs"]) == ("moco", "200")
    assert "imgs/imagenet.png" in cells["read in"]
    assert cells["views"] == "new in every epoch"
    assert "other data: pictures/val" in cells["what differs here"]
    assert all(row[2] in ("12.3", "60.0") for row in rows)
    rows += page.table("Others of the same method and student")[1:]
    assert any(row[2] == "not measured" for row in rows)
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        recalled = "[memory]" in cells["read in"]
        assert ("UNVERIFIED" in cells["published, %"]) == recalled
        assert cells["what differs here"]


def test_words_of_a_picture_tell_its_curve(page):
    (loss,) = [
        a["aria-label"] for t, a in page.tags if a.get("aria-label", "").startswith("Loss of moco")
    ]
    assert "half: 2 at epoch 0.1, 1.8 at epoch 0.5, between 1.8 and 2" in loss
    assert any(a.get("aria-label", "").startswith("knn10. ") for _, a in page.tags)


def test_same_runs_give_the_same_bytes(folders):
    first, second = (make_report(folders[:1], "html", bar=silent_bar) for _ in range(2))
    assert first == second
    assert "1 run: 1 finished" in Page(first).text()


def test_runs_without_metrics_or_scores_still_make_a_page(folders):
    text = Page(make_report(folders[3:], "html", bar=silent_bar)).text()
    assert "None of these runs has written metrics yet." in text
    assert "No scores are kept in these runs yet." in text


def test_run_whose_every_loss_is_no_number_is_shown(tmp_path):
    records = [{**r, "loss": None, "images_per_s": None} for r in records_of()]
    run = make_run(tmp_path / "run", records=records)
    page = Page(make_report([run], "html", bar=silent_bar))
    assert "run: no value is a number" in " ".join(a.get("aria-label", "") for _, a in page.tags)


def test_progress_counts_every_curve(folders):
    told, totals = [], []

    def bar(title, *, total, unit):
        totals.append(total)
        return nullcontext(told.append)

    make_report(folders, "html", bar=bar)
    assert sum(told) == sum(totals) > 0


@pytest.mark.slow
def test_fifty_runs_fit_on_a_page(tmp_path):
    rng = np.random.default_rng(0)
    runs = []
    for i in range(50):
        records = [{"step": n + 1, "epoch": (n + 1) / 10, "loss": float(rng.random())}
                   for n in range(300)]  # fmt: skip
        runs.append(make_run(tmp_path / f"run{i:02}", records=records, finished=i % 7 != 0))
        if i % 7:
            keep(runs[-1], score(float(i)))
    html = make_report(runs, "html", bar=silent_bar)
    assert len(html) < 5_000_000
    page = Page(html)
    rows = page.table("Scores on pictures/val")[1:]
    assert [row[1] for row in rows] == [f"{i:.1f}" if i % 7 else "-" for i in range(50)]
    assert sum(tag == "figure" for tag, _ in page.tags) >= 50
    assert max(page.ids.values()) == 1


def test_report_is_written_over_a_report_and_over_nothing_else(folders, tmp_path):
    text = make_report(folders[:1], "markdown", bar=silent_bar)
    out = tmp_path / "deep" / "report.md"
    save_report(out, text)
    save_report(out, text)
    assert out.read_text() == text
    for kept in (folders[0] / "recipe.json", tmp_path):
        with pytest.raises(ConfigError, match="no report of this form"):
            save_report(kept, text)
    with pytest.raises(ConfigError, match="no report of this form"):
        save_report(out, make_report(folders[:1], "csv", bar=silent_bar))


def test_text_needs_no_matplotlib_and_a_page_says_what_is_missing(folders, monkeypatch):
    for name in ("page", "drawing", "curves"):
        monkeypatch.delitem(sys.modules, f"kdcache.report.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert make_report(folders[:1], "csv", bar=silent_bar)
    assert make_report(folders[:1], "markdown", bar=silent_bar)
    with pytest.raises(MissingExtra, match="a page needs `matplotlib`") as caught:
        make_report(folders[:1], "html", bar=silent_bar)
    assert "kdcache[report]" in caught.value.hint
