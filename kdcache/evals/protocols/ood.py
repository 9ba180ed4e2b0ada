"""OOD: what a linear layer that was trained in distribution makes of other images of its classes.

`--ood DIR` holds a folder of images a class, named as in the data set: sketches, renditions,
another camera. The layer is that of `fast-linear`; its figure in distribution stands beside. Where
the folder lacks classes the answer is also given among those that it has, as ImageNet-R's and -A's
figures are.

*Source:* Hendrycks et al., "The Many Faces of Robustness", ICCV 2021, arXiv:2006.16241 (ImageNet-R:
only the logits of classes that are there); Recht et al., ICML 2019, arXiv:1902.10811 (all logits).
"""

from collections.abc import Sequence

import numpy as np
import torch

from kdcache.evals.exam import Exam
from kdcache.evals.features import Features, match_classes
from kdcache.evals.probe import SIMREG, Probe, ProbeSettings, fit_cached, probe_scores
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.result import Score


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    settings, ood = asked.config, exam.beside.ood
    assert isinstance(settings, ProbeSettings)
    assert ood is not None
    train = exam.features(exam.splits.gallery, asked.view)
    inside = exam.features(exam.splits.queries, asked.view)
    outside = exam.features(ood, asked.view)
    with exam.bar("layer for ood", total=settings.epochs, unit="epochs") as progress:
        probe = fit_cached(train, settings, seed=exam.seed, device=exam.device, progress=progress)

    def scores_of(test: Features, images: str, answers: str) -> list[Score]:
        how = {**asked.setting(), "images": images, "answers": answers}
        return probe_scores(probe, train, test, protocol=asked.family, setting=how)

    scores = [*scores_of(inside, "in distribution", "all"), *scores_of(outside, "ood", "all")]
    present = np.unique(match_classes(train, outside))
    if len(present) < len(train.classes):
        _forbid_others(probe, present)
        scores += scores_of(outside, "ood", f"the {len(present)} classes that are there")
    return scores


@torch.no_grad()
def _forbid_others(probe: Probe, present: np.ndarray) -> None:
    """Let the layer answer these classes only."""
    others = np.setdiff1d(np.arange(len(probe.linear.bias)), present)
    probe.linear.bias[torch.from_numpy(others)] = -torch.inf


def _check(exam: Exam, _: Sequence[Asked]) -> None:
    assert exam.beside.ood is not None
    match_classes(exam.splits.train, exam.beside.ood.images)


PROTOCOL = Protocol(
    presets={"": Preset(SIMREG, "the layer of `fast-linear`, asked of `--ood DIR`", paper=False)},
    run=_run,
    check=_check,
    requires=frozenset({"ood"}),
    of_features=True,
)
