"""A run is read as its folder is now; a folder that is none is refused."""

import json
import math
import shutil

import pytest
from report_runs import CACHE, TEACHER, keep, make_run, records_of, score, write_student

from kdcache.errors import ConfigError
from kdcache.report import read_run, read_runs


def test_finished_run_is_told_from_its_files(tmp_path):
    run = make_run(tmp_path / "good")
    keep(run, score(50.0))
    facts = read_run(run)
    assert (facts.name, facts.method, facts.student, facts.image_size) == (
        "good", "simreg", "test_resnet", 32,
    )  # fmt: skip
    assert facts.state == "finished: 2 epochs, 20 steps"
    assert (facts.steps_per_epoch, facts.num_images, facts.views) == (10, 80, 4)
    assert facts.policy == "weak"  # SimReg's own, since the recipe names none
    assert facts.images == CACHE
    assert facts.taught_by[0].licence == TEACHER["licence"]
    assert facts.taught_by[0].weights_sha256 == "ab" * 32
    assert [s.value for s in facts.scores] == [50.0]
    assert facts.notes == ()


def test_run_under_way_says_where_it_is(tmp_path):
    facts = read_run(make_run(tmp_path / "run", finished=False, records=records_of()[:7]))
    assert facts.state == "not finished: step 7 of 20, epoch 0.7 of 2"
    assert facts.scores == ()


def test_run_without_metrics_is_a_run_that_has_not_begun(tmp_path):
    facts = read_run(make_run(tmp_path / "run", finished=False, records=[]))
    assert facts.state == "not begun: no metrics"
    assert facts.num_images == 80  # of the cache
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert read_run(tmp_path / "run").records == ()


def test_line_that_is_being_written_is_left_out_and_told(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "epo')
    facts = read_run(run)
    assert len(facts.records) == 20
    assert "not complete yet" in facts.notes[0]


def test_value_that_is_not_finite_is_kept_as_a_gap_and_counted(tmp_path):
    records = records_of()
    records[3]["loss"] = None
    records[4]["loss"] = math.inf
    facts = read_run(make_run(tmp_path / "run", records=records))
    assert math.isnan(facts.records[3]["loss"])
    assert facts.notes == ("`loss` is not finite in 2 of 20 records",)


def test_damaged_line_amid_the_metrics_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    for bad in ("{broken", '{"epoch": 1}', "[1]", '{"step": "many"}'):
        (run / "metrics.jsonl").write_text("\n".join([*lines[:4], bad, *lines[5:]]) + "\n")
        with pytest.raises(ConfigError, match=r"line 5 of .*metrics\.jsonl` is no record"):
            read_run(run)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"recipe": {}}', '{"recipe": {"method": "simreg"}}', "null"]
)
def test_record_that_is_none_is_refused(tmp_path, text):
    run = make_run(tmp_path / "run")
    (run / "recipe.json").write_text(text)
    with pytest.raises(ConfigError, match="is no record of a run"):
        read_run(run)


def test_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"is no run: it holds no `recipe\.json`"):
        read_run(tmp_path / "empty")
    with pytest.raises(ConfigError, match="is no run: it is no folder"):
        read_run(tmp_path / "nowhere")


def test_same_run_twice_is_refused_and_equal_names_are_told_apart(tmp_path):
    one, two = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    with pytest.raises(ConfigError, match="are the same run"):
        read_runs([one, tmp_path / "b" / ".." / "a" / "run"])
    assert [facts.name for facts in read_runs([one, two])] == ["a/run", "b/run"]


def test_what_one_run_recorded_of_a_cache_serves_the_others_of_it(tmp_path):
    new, old = make_run(tmp_path / "new"), make_run(tmp_path / "old")
    record = json.loads((old / "recipe.json").read_text())
    del record["taught_by"]
    (old / "recipe.json").write_text(json.dumps(record))
    alone = read_run(old)
    assert (alone.taught_by[0].name, alone.views) == (None, None)
    assert "before runs named their teachers" in alone.notes[0]
    assert read_runs([old, new])[0].taught_by[0].name == "swav_r50"


def test_newest_score_of_a_kind_stands_and_one_of_the_present_student_before_any_other(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(1.0))
    keep(run, score(2.0), score(7.0, 20))
    assert [s.value for s in read_run(run).scores] == [2.0, 7.0]
    kept = (run / "student.safetensors").read_bytes()
    write_student(run, seed=9)
    keep(run, score(3.0))
    shutil.copy(run / "student.safetensors", tmp_path / "other")
    (run / "student.safetensors").write_bytes(kept)  # back to the first student
    facts = read_run(run)
    assert [(s.value, s.stale) for s in facts.scores] == [(2.0, False), (7.0, False)]
    (run / "student.safetensors").write_bytes((tmp_path / "other").read_bytes())
    facts = read_run(run)
    assert [(s.value, s.stale) for s in facts.scores] == [(3.0, False), (7.0, True)]
    assert "older student" in facts.notes[0]


def test_run_of_a_method_that_this_kdcache_does_not_have_is_a_run(tmp_path):
    assert read_run(make_run(tmp_path / "run", "of_my_own")).policy == "weak"
    alone = read_run(make_run(tmp_path / "alone", "of_my_own", taught=False))
    assert alone.policy == "not known"
