"""The ledger keeps every score, whole, and knows which student it was of."""

import json
import math
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
from report_runs import keep, make_run, score, write_student

from kdcache.errors import DataError
from kdcache.evals.ledger import SCORES, read_scores
from kdcache.networks import parameter_digest
from kdcache.students import STUDENT_FILE, load_student


def test_scores_come_back_as_they_were_kept(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(12.345678901), score(60.0, None, metric="top5"))
    keep(run, score(13.0, 20))
    first, second, third = read_scores(run)
    assert first.value == 12.345678901
    assert (first.label, first.text) == ("knn (k=1, vote=plain)", "12.3")
    assert (second.protocol, second.metric, second.setting) == (
        "linear",
        "top5",
        {"preset": "simreg"},
    )
    assert third.setting["k"] == 20
    assert (third.num_queries, third.num_classes, third.data) == (200, 4, "pictures/val")
    assert third.data_fingerprint == "da" * 32
    assert third.versions == {"torch": "7.6"}
    digest = parameter_digest(load_student(run / STUDENT_FILE).model)
    assert third.parameters_sha256 == digest
    assert not third.stale


def test_score_of_an_older_student_is_stale(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(1.0))
    write_student(run, seed=5)
    keep(run, score(2.0))
    assert [s.stale for s in read_scores(run)] == [True, False]
    (run / STUDENT_FILE).unlink()
    assert all(s.stale for s in read_scores(run))


def test_run_without_a_student_or_with_a_damaged_one_takes_no_scores(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    assert read_scores(run) == []
    with pytest.raises(DataError, match=r"holds no `student\.safetensors`"):
        keep(run, score(1.0))
    (run / STUDENT_FILE).write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="is damaged"):
        keep(run, score(1.0))


def test_line_cut_off_by_a_kill_is_no_score_and_spoils_no_later_one(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(1.0))
    with (run / SCORES).open("a") as file:
        file.write('{"protocol": "knn", "set')
    assert [s.value for s in read_scores(run)] == [1.0]
    keep(run, score(2.0))
    assert [s.value for s in read_scores(run)] == [1.0, 2.0]


def test_line_that_is_no_score_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(1.0))
    with (run / SCORES).open("a") as file:
        file.write('{"protocol": "knn"}\n')
    with pytest.raises(DataError, match=r"line 2 of .* is no score"):
        read_scores(run)


def test_keys_of_a_later_version_are_ignored_and_its_unit_is_shown(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(0.25))
    record = json.loads((run / SCORES).read_text())
    (run / SCORES).write_text(json.dumps({**record, "unit": "one", "mood": "good"}) + "\n")
    (found,) = read_scores(run)
    assert (found.unit, found.text) == ("one", "0.250")


def test_score_that_is_no_number_is_kept_as_such(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(math.nan))
    assert "null" in (run / SCORES).read_text()
    (found,) = read_scores(run)
    assert math.isnan(found.value)
    assert found.text == "no number"


def test_several_writers_lose_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: keep(run, score(float(i)), score(i + 0.5, None)), range(12)))
    values = sorted(s.value for s in read_scores(run))
    assert values == sorted([*map(float, range(12)), *(i + 0.5 for i in range(12))])


def test_disk_that_fills_leaves_what_was_there(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(1.0))
    before = (run / SCORES).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            keep(run, score(2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / SCORES).read_bytes() == before
