"""The registry of published figures: complete rows, honest marks."""

import tomllib
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

import kdcache
from kdcache.errors import ConfigError
from kdcache.published import Evidence, published, published_figure

REGISTRY = tomllib.loads((Path(kdcache.__file__).parent / "published.toml").read_text())
METRICS = {
    "linear", "linear_top5", "linear_gain", "knn1", "knn10", "knn20", "cluster", "semi1", "semi10",
}  # fmt: skip
PRESETS = {"", "moco", "disco", "bingo", "compress", "simreg", "swav", "dino"}


def test_keys_are_unique():
    counts = Counter(figure.key for figure in published())
    assert [key for key, count in counts.items() if count > 1] == []
    assert len(counts) > 200


def test_values_are_percentages_and_words_are_known():
    for figure in published():
        assert isinstance(figure.value, float), figure.key
        assert 0 < figure.value < 100, figure.key
        assert figure.metric in METRICS, figure.key
        assert figure.preset in PRESETS, figure.key
        assert figure.evidence in get_args(Evidence), figure.key
        assert figure.source, figure.key


def test_no_word_of_the_file_is_overlooked():
    """A mistyped key would otherwise be a note that nobody ever sees."""
    tables = {"id", "source", "evidence", "metrics", "teacher_top1", "rows"}
    rows = {"method", "variant", "teacher", "preset", "epochs", "note", "values"}
    for table in REGISTRY["tables"]:
        assert set(table) <= tables, table["id"]
        used = {row.get("teacher") for row in table["rows"]}
        assert set(table.get("teacher_top1", {})) <= used, table["id"]
        for row in table["rows"]:
            assert set(row) <= rows, table["id"]
    ids = [table["id"] for table in REGISTRY["tables"]]
    assert len(set(ids)) == len(ids)
    used = {row.get("teacher") for table in REGISTRY["tables"] for row in table["rows"]}
    assert set(REGISTRY["teachers"]) == used - {None}


def test_top5_is_above_top1_and_more_labels_help():
    values = {figure.key: figure.value for figure in published()}
    pairs = [("/linear_top5", "/linear"), ("/semi10", "/semi1")]
    for more, less in pairs:
        found = [key for key in values if key.endswith(more)]
        assert found
        for key in found:
            assert values[key] > values[key.removesuffix(more) + less], key


def test_only_what_was_recalled_is_unverified():
    doubtful = [figure for figure in published() if not figure.verified]
    assert {figure.table for figure in doubtful} == {"memory", "memory_knn"}
    assert {figure.method for figure in doubtful} == {"seed", "disco", "moco"}
    assert all("recalled" in figure.source for figure in doubtful)
    assert all("recalled" not in f.source for f in published() if f.verified)


def test_recalled_gains_agree_with_the_abstract_that_was_read():
    """DisCo's abstract gives gains only; with the recalled baseline they make its figures."""
    baseline = published_figure("memory/moco-disco_run/alone/efficientnet_b0/linear").value
    for gain in published("disco", metric="linear_gain"):
        suffix = {"r50": "r50_200", "r101": "r101_200"}[gain.teacher.name]
        recalled = published_figure(f"memory/disco/{suffix}/efficientnet_b0/linear").value
        assert recalled == pytest.approx(baseline + gain.value)


def test_figures_read_twice_agree():
    """BINGO's images share two figures with SEED's README and four with what was recalled."""
    common = 0
    for other in published(metric="linear"):
        if other.table not in ("seed_readme", "memory"):
            continue
        for figure in published(other.method, other.student, "linear"):
            same = figure.table.startswith("bingo") and figure.teacher is not None
            if same and other.teacher and figure.teacher.name == other.teacher.name:
                assert figure.value == other.value, (figure.key, other.key)
                common += 1
    assert common == 6


def test_figures_are_found_by_what_they_are():
    found = published("seed", "resnet18", "linear")
    assert {figure.value for figure in found} == {57.6, 58.9, 59.5, 63.0, 58.03, 60.31}
    one = published_figure("bingo_linear/seed/r152_800/resnet18/linear")
    assert (one.value, one.preset, one.epochs, one.dataset) == (59.5, "moco", 200, "ImageNet-1k")
    assert (one.teacher.network, one.teacher.method, one.teacher.top1) == (
        "ResNet-152",
        "MoCo-v2",
        74.1,
    )
    assert published("none") == []


def test_unknown_key_is_refused():
    with pytest.raises(ConfigError, match="no published figure `seed/best`") as caught:
        published_figure("seed/best")
    assert "kdcache published" in caught.value.hint
