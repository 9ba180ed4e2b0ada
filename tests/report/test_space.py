"""Maps and neighbours are what plain numpy makes of the same features."""

import numpy as np
import pytest
import torch
from conftest import make_folder
from report_runs import TEACHER, make_run

from kdcache.errors import DataError, TeacherError
from kdcache.files import sha256_of
from kdcache.progress import silent_bar
from kdcache.report import HeldOut, read_runs
from kdcache.report.space import look, nearest_others, plane, turned_onto


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("set") / "val", per_class=6, seed=5)


def wanted(data, **changes):
    options = {"teacher": None, "weights": None, "teacher_size": None}
    return HeldOut(data, **{**options, **changes}, device=torch.device("cpu"), workers=0)


def unit_rows(count, dim, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_map_is_that_of_the_eigenvectors_of_the_covariance():
    unit = unit_rows(50, 7)
    points, explained = plane(unit)
    values, vectors = np.linalg.eigh(np.cov(unit.T, bias=True))
    expected = (unit - unit.mean(axis=0)) @ vectors[:, :-3:-1]
    expected /= np.sqrt(np.square(expected).sum(axis=1).mean())
    for axis in range(2):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(points[:, axis], sign * expected[:, axis], atol=1e-5)
    assert explained == pytest.approx(values[-2:].sum() / values.sum(), rel=1e-4)


def test_images_that_are_all_one_point_make_a_map_of_one_point():
    points, explained = plane(np.repeat(unit_rows(1, 5), 9, axis=0))
    assert explained == 0.0
    assert (points == 0).all()


def test_map_is_turned_and_mirrored_but_not_stretched():
    target = unit_rows(30, 2, seed=1).astype(np.float64)
    turn = np.array([[0.6, -0.8], [-0.8, -0.6]])  # a mirror
    np.testing.assert_allclose(turned_onto(target @ turn, target), target, atol=1e-12)
    other = np.random.default_rng(3).normal(size=(30, 2))
    turned = turned_onto(other, target)
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=1), np.linalg.norm(other, axis=1), rtol=1e-9
    )
    angles = np.linspace(0, 2 * np.pi, 720)
    turns = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles]
    best = min(np.square(other @ t @ m - target).sum() for t in turns
               for m in (np.eye(2), np.diag([1.0, -1.0])))  # fmt: skip
    assert np.square(turned - target).sum() <= best + 1e-9


def test_neighbours_are_the_others_by_cosine_even_among_copies():
    unit = unit_rows(20, 6)
    unit[7] = unit[3]
    found = nearest_others(unit, 4)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    np.testing.assert_allclose(
        np.take_along_axis(cosine, found, axis=1), -np.sort(-cosine, axis=1)[:, :4], rtol=1e-6
    )
    same = np.repeat(unit[:1], 9, axis=0)  # nine copies crowd each other out
    assert all(row not in others for row, others in enumerate(nearest_others(same, 4)))


def test_student_equal_to_another_finds_all_of_its_neighbours(held_out, tmp_path, tiny_weights):
    told = {
        **TEACHER,
        "name": "timm:test_resnet",
        "image_size": 32,
        "weights": {"source": "file", "sha256": sha256_of(tiny_weights)},
    }
    runs = read_runs(
        [
            make_run(tmp_path / "one", taught_by=[told]),
            make_run(tmp_path / "two", weights_seed=4, taught_by=[told]),
            make_run(tmp_path / "under way", finished=False),
        ]
    )
    space = look(
        runs, wanted(held_out, teacher="timm:test_resnet", weights=tiny_weights), silent_bar
    )
    teacher, one, two = space.seers
    assert (teacher.run, one.run, two.run) == (None, 0, 1)
    assert teacher.shared is None
    assert space.left_out == ("under way",)
    assert (space.num_images, space.num_taken, space.source) == (
        24,
        24,
        f"{held_out.parent.name}/val",
    )
    for seer in (one, two):
        common = [
            len(set(a) & set(b)) / 5
            for a, b in zip(seer.neighbours, teacher.neighbours, strict=True)
        ]
        assert seer.shared == pytest.approx(100 * np.mean(common))
        alike = space.labels[seer.neighbours] == space.labels[:, None]
        assert seer.same_class == pytest.approx(100 * alike.mean())
        assert np.square(seer.points).sum(axis=1).mean() == pytest.approx(1.0)
    shown = {int(n) for s in space.seers for n in s.neighbours[space.queries].ravel()}
    assert set(space.pictures) == shown | set(space.queries.tolist())
    assert all(p.startswith("data:image/webp;base64,") for p in space.pictures.values())


def test_teacher_of_other_weights_than_the_runs_learned_from_is_refused(
    held_out, tmp_path, tiny_weights
):
    told = {**TEACHER, "name": "timm:test_resnet", "image_size": 32}
    runs = read_runs([make_run(tmp_path / "run", taught_by=[told])])
    with pytest.raises(TeacherError, match="the runs learned from `abababababab`"):
        look(runs, wanted(held_out, teacher="timm:test_resnet", weights=tiny_weights), silent_bar)


def test_image_that_cannot_be_read_is_left_out_and_counted(tmp_path):
    data = make_folder(tmp_path / "val", per_class=4)
    broken = data / "class1" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    space = look(read_runs([make_run(tmp_path / "run")]), wanted(data), silent_bar)
    assert (space.num_taken, space.num_unreadable) == (15, 1)
    assert "class1/000.jpg" not in space.paths
    assert len(space.seers[0].points) == 15


def test_folder_of_a_few_or_unlabelled_or_no_images(tmp_path):
    run = make_run(tmp_path / "run")
    flat = make_folder(tmp_path / "few", per_class=2, classes=1)
    (tmp_path / "flat").mkdir()
    for image in (flat / "class0").iterdir():
        image.rename(tmp_path / "flat" / image.name)
    space = look(read_runs([run]), wanted(tmp_path / "flat"), silent_bar)
    assert (space.num_taken, space.seers[0].same_class) == (2, None)
    (tmp_path / "flat" / "000.jpg").unlink()
    assert look(read_runs([run]), wanted(tmp_path / "flat"), silent_bar).queries.size == 0
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images"):
        look(read_runs([run]), wanted(tmp_path / "none"), silent_bar)
