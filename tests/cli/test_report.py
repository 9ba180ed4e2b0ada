"""`kdcache report` as a user types it."""

import csv
import io

import pytest
from kdcache_cli.main import app
from report_runs import keep, make_run, score
from typer.testing import CliRunner

from kdcache.errors import ConfigError


def type_in(*words: object):
    return CliRunner().invoke(app, ["report", *map(str, words)])


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path / "run")
    keep(run, score(12.3))
    return run


def test_page_is_written_and_its_size_said(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = type_in(run)
    assert done.exit_code == 0, done.output
    assert "report.html: 0." in done.stderr
    assert (
        (tmp_path / "report.html").read_text().startswith("<!doctype html><!-- kdcache report -->")
    )


def test_text_goes_to_standard_output_or_a_file(run, tmp_path):
    assert type_in(run, "--markdown").stdout.startswith("# kdcache report\n")
    rows = list(csv.DictReader(io.StringIO(type_in(run, "--csv").stdout)))
    assert [row["value"] for row in rows] == ["12.3"]
    out = tmp_path / "table.csv"
    assert type_in(run, "--csv", "--out", out).stdout == ""
    assert list(csv.DictReader(io.StringIO(out.read_text()))) == rows


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--csv", "--markdown"], "two forms"),
        (["--csv", "--data", "x"], "which text cannot hold"),
        (["--teacher", "r50"], "--teacher `r50` is given without --data"),
        (["--data", "x", "--weights", "w"], "--weights `w` is given without --teacher"),
        (["--data", "x", "--teacher-size", "32"], "without --teacher"),
    ],
)
def test_options_that_would_be_ignored_are_refused(run, options, found):
    done = type_in(run, *options)
    assert isinstance(done.exception, ConfigError)
    assert found in str(done.exception)


def test_folder_that_is_no_run_is_named(run, tmp_path):
    done = type_in(run, tmp_path)
    assert isinstance(done.exception, ConfigError)
    assert f"`{tmp_path}` is no run" in str(done.exception)
