"""Published figures stand beside measured ones with every known difference in words."""

from report_runs import keep, make_run, score

from kdcache.published import published
from kdcache.report import read_run
from kdcache.report.compare import beside, metric_of, teacher_text, views_text


def run_of(folder, *scores, student="resnet18", **options):
    run = make_run(folder, "seed", student=student, **options)
    if scores:
        keep(run, *scores)
    return read_run(run)


def test_figures_of_the_same_method_and_student_stand_beside_each_score(tmp_path):
    run = run_of(tmp_path / "run", score(41.0, None), score(30.0, 10))
    pairs = beside(run)
    expected = published("seed", "resnet18")
    assert {pair.figure for pair in pairs} == set(expected)
    assert all(pair.same_student for pair in pairs)
    by_metric = {pair.figure.metric: pair.score for pair in pairs}
    assert by_metric["linear"].value == 41.0
    assert by_metric["knn10"].value == 30.0
    assert by_metric["linear_top5"] is None


def test_what_differs_is_said(tmp_path):
    run = run_of(tmp_path / "run", score(41.0, None, setting={"preset": "moco", "features": "one"}))
    (pair,) = (
        p for p in beside(run) if p.figure.key == "bingo_linear/seed/r50_200/resnet18/linear"
    )
    said = "; ".join(pair.differences)
    assert "other data: pictures/val (4 classes, 200 images), not ImageNet-1k" in said
    assert "2 epochs, not 200" in said
    assert "32 px, not 224" in said
    assert "teacher: swav_r50, not checked to be theirs" in said
    assert "4 views from a cache" in said
    assert "a linear layer on: one, not on augmented views" in said
    assert "protocol" not in said  # `moco` is that of the figure
    assert teacher_text(pair.figure) == "ResNet-50 by MoCo-v2 200 epochs (67.4 % linear)"
    assert views_text(pair.figure) == "new in every epoch"
    other = run_of(tmp_path / "other", score(41.0, None), finished=True)
    said = "; ".join(beside(other)[0].differences)
    assert "protocol `simreg`, not `moco`" in said


def test_targets_of_one_stored_view_are_told():
    stored = [f for f in published("simreg") if "stored" in f.note]
    assert stored
    assert {views_text(f) for f in stored} == {"one stored for the teacher"}


def test_imagenet_is_not_taken_on_trust(tmp_path):
    imagenet = score(41.0, None, num_classes=1000, num_queries=50_000)
    said = "; ".join(beside(run_of(tmp_path / "run", imagenet))[0].differences)
    assert "not checked to be the images of ImageNet-1k" in said


def test_no_pair_is_without_a_difference(tmp_path):
    perfect = score(57.6, None, setting={"preset": "moco"}, num_classes=1000, num_queries=50_000)
    for pair in beside(run_of(tmp_path / "run", perfect)):
        assert pair.differences


def test_figures_of_other_students_are_marked_where_none_is_of_the_runs_own(tmp_path):
    pairs = beside(run_of(tmp_path / "run", student="mobilenetv3_small_100"))
    assert {p.figure for p in pairs} == set(published("seed"))
    assert not any(p.same_student for p in pairs)
    assert all(any(d.startswith("another student: ") for d in p.differences) for p in pairs)
    assert all("not measured" in p.differences for p in pairs)


def test_unfinished_run_says_so_and_a_stale_score_is_not_compared(tmp_path):
    run = run_of(tmp_path / "run", score(41.0, None))
    (run.path / "student.safetensors").unlink()
    pairs = beside(read_run(run.path))
    assert all(p.score is None for p in pairs)
    assert all("the run is not finished" in p.differences for p in pairs)


def test_scores_that_papers_do_not_report_match_nothing(tmp_path):
    matches = {
        ("knn", "top1"): "knn5",
        ("linear", "top1"): "linear",
        ("linear", "top5"): "linear_top5",
        ("cluster", "top1"): "cluster",
        ("fast-linear", "top1"): None,
        ("semi-frozen", "top1"): None,
        ("transfer-linear", "top1"): None,
    }
    run = make_run(tmp_path / "run")
    keep(run, *(score(1.0, 5, protocol=p, metric=m) for p, m in matches))
    found = {(s.protocol, s.metric): metric_of(s) for s in read_run(run).scores}
    assert found == matches
