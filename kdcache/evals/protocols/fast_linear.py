"""Fast linear: a linear layer on the features of one centred view, computed once.

No paper's protocol: without augmented views a layer is a little worse off, and ranks networks
alike. SimReg's layer and schedule serve any network without a learning rate of its own.

*Source:* the layer: Navaneet et al., "SimReg", BMVC 2021, arXiv:2201.05131; CompRess's and SimReg's
evaluation with `--use_cache` is the nearest to it.
"""

from collections.abc import Sequence

from kdcache.evals.exam import Exam
from kdcache.evals.probe import SIMREG, ProbeSettings, fit_cached, probe_scores
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.result import Score


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    settings = asked.config
    assert isinstance(settings, ProbeSettings)
    train = exam.features(exam.splits.gallery, asked.view)
    test = exam.features(exam.splits.queries, asked.view)
    with exam.bar("fast linear", total=settings.epochs, unit="epochs") as progress:
        probe = fit_cached(train, settings, seed=exam.seed, device=exam.device, progress=progress)
    how = {**asked.setting(), "features": f"cached {train.view} view"}
    return probe_scores(probe, train, test, protocol=asked.family, setting=how)


PROTOCOL = Protocol(
    presets={
        "": Preset(SIMREG, "SimReg's layer, arXiv:2201.05131, on one centred view", paper=False)
    },
    run=_run,
    of_features=True,
)
