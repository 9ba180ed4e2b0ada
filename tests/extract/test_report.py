"""The report: which stage an extraction waited for, told from its seconds."""

import pytest

from kdcache.extract import Report

STAGES = {"decode_s": 2.0, "render_s": 4.0, "copy_s": 0.5, "forward_s": 20.0, "writing_s": 0.5}


def make(**changes):
    times = {"waiting_s": 1.0, "teacher_s": 20.5, **STAGES}
    return Report(**{"views": 1000, "renderers": 2, **times, **changes})


def test_nothing_done_says_nothing():
    assert Report().lines() == []


def test_a_slow_teacher_binds_and_by_how_much():
    total, stages = make().lines()
    assert total == ("1,000 views in 22.0 s (45/s): teacher 93%, waiting for images 5%, writing 2%")
    assert stages == (
        "a view takes: decode 2 ms, augment 4 ms, copy 0.5 ms, teacher 20 ms, write 0.5 ms; "
        # Images: (2 + 4) / 2 processes = 3 ms, the teacher's side: 21 ms.
        "teacher binds: 2 processes with images could keep 7.0 times the pace"
    )


@pytest.mark.parametrize(
    ("slow", "name"), [("decode_s", "decode"), ("render_s", "augment"), ("writing_s", "write")]
)
def test_the_slowest_stage_binds(slow, name):
    _, stages = make(**{slow: 210.0}).lines()
    assert f"; {name} binds" in stages


def test_images_are_made_side_by_side():
    _, stages = make(render_s=38.0).lines()  # 38 / 2 processes are less than the teacher's 20
    assert "; teacher binds" in stages
    _, stages = make(render_s=42.0).lines()
    assert "; augment binds: the teacher could keep 1.0 times the pace" in stages


def test_one_process_does_all_in_turn():
    _, stages = make(renderers=0).lines()
    assert stages.endswith("teacher binds, 74% of a process that does all in turn")


def test_reports_add_up():
    both = make(teachers=2)
    both.add(make(teachers=3, renderers=5))
    assert (both.teachers, both.renderers, both.views) == (3, 5, 2000)
    assert both.total_s == 44.0
    assert all(getattr(both, name) == 2 * value for name, value in STAGES.items())
