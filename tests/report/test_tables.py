"""The tables hold what the files hold, number for number."""

import csv
import io
import json

import pytest
from report_runs import CACHE, keep, make_run, records_of, score

from kdcache.report import read_runs
from kdcache.report.tables import comma_separated, markdown, score_tables, span, warnings


@pytest.fixture
def runs(tmp_path):
    """One with scores on two data sets, one under way, one alone with a pipe in its name."""
    good = make_run(tmp_path / "good")
    keep(good, score(12.3456), score(60.0, None), score(88.8, None, metric="top5"))
    keep(good, score(70.0), data="birds/test", fingerprint="b1" * 32)
    half_records = [*records_of()[:5], {"step": 5, "epoch": 0.5, "eval/knn10": 9.0}]
    half = make_run(tmp_path / "half", "seed", finished=False, records=half_records)
    alone = make_run(tmp_path / "a|lone", "moco", taught=False)
    return read_runs([good, half, alone])


def test_scores_of_other_images_stand_in_another_table(runs):
    first, second = score_tables(runs)
    assert first.caption.startswith("Scores on pictures/val (fingerprint dadadadadada; 200 images")
    assert first.head == (
        "run",
        "knn (k=1, vote=plain) top1, %",
        "linear (preset=simreg) top1, %",
        "linear (preset=simreg) top5, %",
    )
    assert first.rows == (
        ("good", "12.3", "60.0", "88.8"),
        ("half", "-", "-", "-"),
        ("a|lone", "-", "-", "-"),
    )
    assert second.caption.startswith("Scores on birds/test")
    assert second.rows[0] == ("good", "70.0")


def test_csv_gives_every_number_of_the_files_exactly(runs):
    rows = list(csv.DictReader(io.StringIO(comma_separated(runs))))
    assert len(rows) == 4 + 1 + 1
    kept = [json.loads(line) for line in (runs[0].path / "scores.jsonl").read_text().splitlines()]
    for row, record in zip(rows, kept, strict=False):
        assert float(row["value"]) == record["value"]
        assert row["data_fingerprint"] == record["data_fingerprint"]
        assert row["parameters_sha256"] == record["parameters_sha256"]
        assert (row["run"], row["caches"], row["stale"]) == ("good", CACHE, "False")
    half, alone = rows[-2:]
    assert (half["finished"], half["step"], half["loss"]) == ("False", "5", str(2.0 - 4 / 20))
    assert (half["value"], half["protocol"]) == ("", "")
    assert (alone["images"], alone["caches"]) == ("1a" * 32, "")


def test_markdown_has_whole_tables_whatever_the_names(runs):
    text = markdown(runs)
    assert text.startswith("# kdcache report\n")
    assert "a\\|lone" in text
    for block in text.split("\n\n"):
        lines = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "not finished: step 5 of 20" in text
    assert "| 12.3 |" in " ".join(text.split())


def test_markdown_marks_what_was_never_verified(tmp_path):
    run = make_run(tmp_path / "run", "seed", student="efficientnet_b0")
    text = markdown(read_runs([run]))
    assert "61.3 UNVERIFIED" in text
    assert "UNVERIFIED, from memory: recalled, read nowhere" in text
    assert "67.6 UNVERIFIED" in text  # SEED's small patches, as recalled
    assert " 67.6 |" in text  # and as read
    assert "No scores are kept yet" in text


def test_what_keeps_runs_from_being_compared_is_said(runs, tmp_path):
    said = " ".join(warnings(runs))
    assert "2 different sets of labelled images" in said
    assert "with and without a cache" in said
    assert "caches" not in said.partition(".")[0]
    other = read_runs([runs[0].path, make_run(tmp_path / "other", caches=["beef" * 16])])
    assert "2 different caches" in " ".join(warnings(other))
    assert warnings(runs[1:2]) == []


def test_times_are_for_people():
    assert [span(s) for s in (0.25, 99.0, 150.0, 5940.0, 7260.0)] == [
        "0.2 s", "99.0 s", "2.5 min", "99.0 min", "2 h 01 min",
    ]  # fmt: skip
