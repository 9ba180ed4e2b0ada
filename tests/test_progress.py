"""Progress without a terminal is plain lines."""

import io
import sys

from kdcache.progress import progress_bar
from kdcache.table import format_table


def test_lines_where_there_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("extract", total=10, unit="images") as progress:
        progress(4)
        progress(6)
    assert "\r" not in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("extract:   0%")
    assert "10/10" in lines[-1]
    assert "images/s" in lines[-1]


def test_items_that_were_done_before_do_not_count_for_the_rate(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("extract", total=1_000_000, unit="images", done=999_999) as progress:
        progress(1)
    assert "1000000/1000000" in stream.getvalue()
    rate = stream.getvalue().splitlines()[-1].split(", ")[-1]
    assert float(rate.split("images")[0]) < 500_000


def test_table_is_aligned_and_markdown():
    text = format_table(["name", "kNN"], [["chance", "2.0"], ["a longer name", "67.4"]])
    assert text.splitlines() == [
        "| name          |  kNN |",
        "| ------------- | ---: |",
        "| chance        |  2.0 |",
        "| a longer name | 67.4 |",
    ]
