"""Transfer-linear: a linear layer on another labelled data set, the backbone frozen.

`--transfer DIR` holds train/ and val/ or test/.

*Source:* Gao et al., "DisCo", ECCV 2022, arXiv:2104.09124, `cifar_main_lincls.py`: CIFAR-10 and
CIFAR-100 at 224 px.
"""

from collections.abc import Sequence

from kdcache.evals.exam import Exam
from kdcache.evals.probe import SIMREG, ProbeSettings, fit_augmented, probe_scores
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.protocols._transfer import check_transfer, transfer_name, transfer_splits
from kdcache.evals.result import Score


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    found: dict[str, list[Score]] = {}
    for view in dict.fromkeys(one.view for one in asked):
        found |= _pass(exam, [one for one in asked if one.view == view], view)
    return [score for one in asked for score in found[one.name]]


def _pass(exam: Exam, asked: Sequence[Asked], view: str) -> dict[str, list[Score]]:
    splits = transfer_splits(exam)
    train, test = exam.features(splits.gallery, view), exam.features(splits.queries, view)
    settings = [_settings(one) for one in asked]
    total = max(one.epochs for one in settings) * len(train)
    with exam.bar("linear, transfer", total=total, unit="images") as progress:
        probes = fit_augmented(
            exam.subject,
            splits.gallery,
            train,
            settings,
            seed=exam.seed,
            device=exam.device,
            workers=exam.workers,
            keep=exam.keep,
            progress=progress,
        )
    where = {"backbone": "frozen", "data": transfer_name(splits)}
    return {
        one.name: probe_scores(
            probe, train, test, protocol=one.family, setting={**one.setting(), **where}
        )
        for one, probe in zip(asked, probes, strict=True)
    }


def _settings(asked: Asked) -> ProbeSettings:
    assert isinstance(asked.config, ProbeSettings)
    return asked.config


PROTOCOL = Protocol(
    presets={
        "disco": Preset(
            ProbeSettings(
                epochs=200, lr=3.0, momentum=0.9, weight_decay=0.0, schedule="step", milestones=[]
            ),
            "DisCo, arXiv:2104.09124, cifar_main_lincls.py: lr 3 throughout; whole test images",
            view="full",
        ),
        "compress": Preset(SIMREG, "CompRess's layer, arXiv:2010.14713, eval_linear.py"),
    },
    run=_run,
    check=check_transfer,
    requires=frozenset({"transfer"}),
)
