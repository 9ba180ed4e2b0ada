"""The protocols on photographs, beside scikit-learn, scipy and a plain torch script."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kdcache.evals import open_subject

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "protocols.py"


@pytest.fixture(scope="module")
def side_by_side(shared, tmp_path_factory):
    """20 training and 12 test images of each of 10 classes; a CIFAR ResNet-20 looks at them."""
    spec = importlib.util.spec_from_file_location("protocols", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("real")
    data = module.some_images(shared / "data" / "tiny50", folder, 10, 20, 12)
    subject, teacher = (open_subject(f"shared_teachers:cifar10_resnet{d}") for d in (20, 56))
    return {row.what: row for row in module.run(data, subject, teacher, epochs=15)}


@pytest.mark.slow
def test_figures_are_those_of_independent_implementations(side_by_side):
    exact = [name for name in side_by_side if "moco" not in name and "simreg" not in name]
    assert len(exact) == 7
    for name in exact:
        row = side_by_side[name]
        assert row.ours == pytest.approx(row.theirs, abs=1e-3), row
    nearest = side_by_side["knn:simreg, k = 1"]
    assert nearest.ours == pytest.approx(nearest.theirs, abs=1e-9)


@pytest.mark.slow
def test_ties_are_all_that_differs_from_scikit_learns_plain_vote(side_by_side):
    """It gives equal votes to the first class; SimReg draws lots, whose mean we take."""
    row = side_by_side["knn:simreg, k = 20"]
    assert abs(row.ours - row.theirs) < 5


@pytest.mark.slow
def test_linear_evaluation_is_that_of_a_plain_torch_script(side_by_side):
    """Other crops and another order, so not digit for digit: within what seeds differ by."""
    (row,) = (side_by_side[name] for name in side_by_side if "moco" in name)
    assert np.isfinite(row.ours)
    assert row.ours > 15  # chance is 10
    assert row.ours == pytest.approx(row.theirs, abs=10)
