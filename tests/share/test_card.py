"""The cache card: what it says, and that it says no more than is known."""

import re
from pathlib import Path

import commands
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from huggingface_hub.repocard import metadata_load
from share.caches import NUM_ROWS, RECIPE, UNREADABLE, grow, make_cache, values_of

import kdcache
from kdcache.share.card import is_unedited, make_card
from kdcache.share.citation import PAPERS, cite_paper
from kdcache.teachers import registered_teachers

GOLDEN = Path(__file__).with_name("card.md")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("card") / "cache")


def test_a_card_says_what_it_should(cache):
    """Read it as a person, then change it: `card.md`, where a name stands for what may differ."""
    card = make_card(cache, url="hf://datasets/lab/cache", data_licence="CC0-1.0")
    names = {"IDENTITY": cache.identity, "RECIPE": cache.manifest.recipe}
    expected = GOLDEN.read_text()
    for name, value in {**names, "VERSION": kdcache.__version__}.items():
        expected = expected.replace(f"<{name}>", value)
    assert card[: card.index("<!--")] == expected


def test_the_hub_can_read_the_yaml(cache, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(make_card(cache, data_licence="mit"))
    table = metadata_load(path)
    assert table["license"] == "mit"
    assert table["pretty_name"] == "r50: 2 views of 200 images"
    assert table["size_categories"] == ["n<1K"]
    assert table["viewer"] is False
    assert "## Teacher" in DatasetCard.load(path).text


@pytest.mark.parametrize(
    ("weights", "data", "word"),
    [
        ("MIT", "MIT", "mit"),
        ("MIT", "CC0-1.0", "other"),
        ("Our own", "Our own", "other"),
        (None, "MIT", "unknown"),
        ("unstated", "MIT", "unknown"),
        ("MIT", None, "unknown"),
        ("MIT", "  ", "unknown"),
    ],
)
def test_a_licence_is_never_guessed(tmp_path, weights, data, word):
    recipe = {**RECIPE, "teacher": {**RECIPE["teacher"], "licence": weights}}
    card = make_card(make_cache(tmp_path / "cache", recipe=recipe), data_licence=data)
    path = tmp_path / "README.md"
    path.write_text(card)
    assert metadata_load(path)["license"] == word
    said = dict(re.findall(r"^- (the teacher's weights|the images): (.*)$", card, re.MULTILINE))
    stated = {"the teacher's weights": weights, "the images": data}
    for name, licence in stated.items():
        known = licence not in (None, "unstated", "  ")
        assert said[name] == (licence if known else "not stated")


def test_a_licence_of_several_lines_cannot_break_the_card(cache):
    card = make_card(cache, data_licence="ours\n\n## Teacher\n---")
    assert "- the images: ours ## Teacher ---\n" in card


def test_the_knn_figure_is_the_one_that_the_card_describes(cache):
    values = values_of(64, 2).astype(np.float32).astype(np.float64)
    unit = values / np.linalg.norm(values, axis=2, keepdims=True)
    mean = unit.mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    labels = np.arange(NUM_ROWS) % 3 - 1
    readable = [row for row in range(NUM_ROWS) if row not in UNREADABLE]
    right = []
    for row in readable:
        if labels[row] < 0:
            continue
        others = [other for other in readable if other != row]
        nearest = sorted(others, key=lambda other: -(unit[row, 0] @ mean[other]))[:10]
        votes = np.zeros(2)
        for other in nearest:
            if labels[other] >= 0:
                votes[labels[other]] += 1 + 1e-6 * (unit[row, 0] @ mean[other])
        right.append(votes.argmax() == labels[row])
    table = re.search(r"^\| `feature` +\| +([\d.]+) \|", make_card(cache), re.MULTILINE)
    assert float(table[1]) == pytest.approx(100 * np.mean(right), abs=0.051)


def test_a_grown_cache_tells_its_lineage_and_what_it_took_up(tmp_path):
    old = make_cache(tmp_path / "cache")
    grown = grow(old)
    card = make_card(grown)
    assert f"- grown from: `{old.identity}`" in card
    assert f"Identity: `{grown.identity}`" in card
    assert "- kNN graph: 2 neighbours by `feature`" in card


def test_an_unknown_teacher_is_not_given_a_paper(tmp_path):
    recipe = {**RECIPE, "teacher": {**RECIPE["teacher"], "name": "own:teacher"}}
    card = make_card(make_cache(tmp_path / "cache", recipe=recipe))
    assert "arxiv" not in card.lower()
    assert "- paper: not known to kdcache" in card
    assert "kdcache pull URL own-teacher --views 2" in card


def test_an_edit_of_any_letter_shows(cache):
    card = make_card(cache)
    assert is_unedited(card)
    for place in (10, len(card) // 2, card.index("<!--") - 3):
        assert not is_unedited(card[:place] + "x" + card[place + 1 :])
    assert not is_unedited(card + "more\n")
    assert not is_unedited("# A README of ours\n")


def test_every_paper_of_the_registry_can_be_cited_whole():
    assert {entry.paper.removeprefix("arXiv:") for entry in registered_teachers().values()} == set(
        PAPERS
    )
    entry = cite_paper("arXiv:2003.04297")
    assert "author" in entry
    assert "year          = {2020}" in entry
    assert "author" not in cite_paper("arXiv:2401.00001")
    for number in PAPERS:
        text = cite_paper(number)
        assert text.count("{") == text.count("}")


def test_the_command_prints_or_writes_the_card(cache, tmp_path):
    out = tmp_path / "README.md"
    command = ("card", cache.path, "--data-licence", "CC0-1.0")
    printed, written = (commands.kdcache(*command, *more) for more in ([], ["--out", out]))
    assert (printed.returncode, written.returncode) == (0, 0)
    assert out.read_text() == printed.stdout == make_card(cache, data_licence="CC0-1.0")
    assert not written.stdout
