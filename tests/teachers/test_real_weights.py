"""Real weights reach the accuracies that their data sheet states: `shared/data/README.md`."""

import pytest
from small import CPU

from kdcache.evals import examine, open_splits, open_subject
from kdcache.progress import progress_bar


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "stated"), [(20, 91.9), (56, 92.7)], ids=["cifar10_resnet20", "cifar10_resnet56"]
)
def test_cifar_resnets_reach_their_stated_accuracy(shared, depth, stated):
    """By `module:function`: their shortcuts have no parameters, so no timm model takes them."""
    subject = open_subject(f"shared_teachers:cifar10_resnet{depth}")
    splits = open_splits(shared / "data" / "cifar10")
    scores = examine(
        subject, splits, ["knn"], ks=[10], policy="full", device=CPU, workers=0, bar=progress_bar
    )
    assert scores[0].value == pytest.approx(stated, abs=1.0)
