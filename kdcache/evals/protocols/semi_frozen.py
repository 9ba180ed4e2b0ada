"""Semi-frozen: a linear layer from 1 % or 10 % of the labels, the backbone frozen.

Not to be compared with `semi-finetune`, where the backbone learns as well. The labels are those of
`--labelled-list FILE`, or a share of each class by a seed.

*Source:* each preset's own; the lists are SimCLR's, arXiv:2002.05709.
"""

from collections.abc import Sequence

from pydantic import Field

from kdcache.evals.exam import Exam
from kdcache.evals.probe import SIMREG, ProbeSettings, probe_scores
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.protocols._labels import check_labels, labelled_part
from kdcache.evals.protocols._probes import fit_probes
from kdcache.evals.result import Score


class Config(ProbeSettings):
    """A layer, and how many labels it learns from."""

    percent: float = Field(gt=0, le=100)
    """Of the training images of each class."""


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    found: dict[str, list[Score]] = {}
    for percent in dict.fromkeys(_config(one).percent for one in asked):
        found |= _pass(exam, [one for one in asked if _config(one).percent == percent], percent)
    return [score for one in asked for score in found[one.name]]


def _pass(exam: Exam, asked: Sequence[Asked], percent: float) -> dict[str, list[Score]]:
    part, labels = labelled_part(exam, percent)
    train = exam.features(part, asked[0].view)
    test = exam.features(exam.splits.queries, asked[0].view)
    settings = [_config(one) for one in asked]
    probes = fit_probes(
        exam, exam.subject, part, train, settings, f"linear, {percent:g} % of labels"
    )
    return {
        one.name: probe_scores(
            probe,
            train,
            test,
            protocol=one.family,
            setting={**one.setting(), "backbone": "frozen", "labels": labels},
        )
        for one, probe in zip(asked, probes, strict=True)
    }


def _config(asked: Asked) -> Config:
    assert isinstance(asked.config, Config)
    return asked.config


def _check(exam: Exam, asked: Sequence[Asked]) -> None:
    check_labels(exam, asked, [_config(one).percent for one in asked])


_DISCO = "DisCo, arXiv:2104.09124, main_lincls_semi.py: only the layer learns"
_COMPRESS = "CompRess, arXiv:2010.14713: its eval_linear.py on the listed images"


def _disco(percent: float) -> Config:
    return Config(
        percent=percent, epochs=100, lr=3.0, momentum=0.9, weight_decay=0.0,
        schedule="step", milestones=[60, 80], decay=0.5,
    )  # fmt: skip


def _compress(percent: float) -> Config:
    return Config(percent=percent, **SIMREG.model_dump())


PROTOCOL = Protocol(
    presets={
        "disco-1": Preset(_disco(1.0), _DISCO),
        "disco-10": Preset(_disco(10.0), _DISCO),
        "compress-1": Preset(_compress(1.0), _COMPRESS),
        "compress-10": Preset(_compress(10.0), _COMPRESS),
    },
    run=_run,
    check=_check,
    accepts=frozenset({"labelled_list"}),
)
