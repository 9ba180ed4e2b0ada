"""The demo runs from patches to a table, for every method it names."""

import importlib.util

import pytest
import torch

from kdcache.demo import patches, run
from kdcache.progress import progress_bar


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="needs the extra `demo` (scikit-image)"
)
def test_small_demo_ends_in_a_table_and_is_not_run_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "_PER_CLASS", {"train": 8, "test": 3})
    monkeypatch.setattr(run, "TEACHER", "test_resnet")
    monkeypatch.setattr(
        run, "_TEACHER_TRAIN", {**run._TEACHER_TRAIN, "epochs": 2, "batch_size": 32}
    )
    monkeypatch.setattr(
        run, "_STUDENT_TRAIN", {**run._STUDENT_TRAIN, "epochs": 2, "batch_size": 32}
    )
    short = {
        name: ({**settings, **({"queue": 32} if "queue" in settings else {})}, lr)
        for name, (settings, lr) in run._SETTINGS.items()
    }
    monkeypatch.setattr(run, "_SETTINGS", short)  # 128 images allow no longer queues
    place = {
        "seed": 0,
        "device": torch.device("cpu"),
        "workers": 0,
        "bar": progress_bar,
        "tell": print,
    }
    first = run.run_demo(tmp_path, **place)
    text = "\n".join(first.lines(tmp_path))
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:5] == ["chance", "16 x 16 pixels", "student, untrained"]
    assert "student without a teacher (moco)" in rows
    for name in set(run.METHODS) - {"moco"}:
        assert f"student, {name}" in rows
    assert "| teacher " in text
    assert "kdcache extract --teacher" in text
    again = run.run_demo(tmp_path, **place)
    assert {n: [s.value for s in scores] for n, scores in again.scores.items()} == {
        n: [s.value for s in scores] for n, scores in first.scores.items()
    }
