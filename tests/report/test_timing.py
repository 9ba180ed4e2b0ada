"""Time is what the logged throughput says, added up."""

import pytest
from report_runs import make_run, records_of

from kdcache.report import read_run
from kdcache.report.timing import timing_of


def test_rates_add_up_to_the_time_of_the_run(tmp_path):
    records = records_of()[4::5]  # at steps 5, 10, 15, 20: 40 images each
    for record, rate in zip(records, (40.0, 20.0, 10.0, 40.0), strict=True):
        record["images_per_s"] = rate
    timing = timing_of(read_run(make_run(tmp_path / "run", records=records)))
    assert timing is not None
    assert timing.total_s == pytest.approx(1 + 2 + 4 + 1)
    assert timing.images_per_s == pytest.approx(160 / 8)
    assert timing.epoch_s == pytest.approx(80 / 20)
    assert (timing.slowest, timing.fastest, timing.num_steps) == (10.0, 40.0, 20)


def test_record_without_a_rate_is_left_out_of_time_and_steps(tmp_path):
    records = records_of()
    records[0]["images_per_s"] = None
    records[1]["images_per_s"] = 0.0
    timing = timing_of(read_run(make_run(tmp_path / "run", records=records)))
    assert timing is not None
    assert timing.num_steps == 18
    assert timing.total_s == pytest.approx(18 * 8 / 40)


def test_examination_between_two_records_takes_no_steps_away(tmp_path):
    records = records_of()[4::5]
    plain = timing_of(read_run(make_run(tmp_path / "plain", records=records)))
    for at, step in ((2, 10), (3, 13)):  # one beside a record, one between two
        records.insert(at, {"step": step, "epoch": step / 10, "eval/knn10": 50.0})
    assert timing_of(read_run(make_run(tmp_path / "examined", records=records))) == plain


def test_run_without_rates_has_no_timing(tmp_path):
    for name, records in (("none", []), ("no_rate", [{"step": 1, "epoch": 0.1, "loss": 1.0}])):
        assert timing_of(read_run(make_run(tmp_path / name, records=records))) is None
