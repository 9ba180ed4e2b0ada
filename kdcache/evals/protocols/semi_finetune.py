"""Semi-finetune: the whole network learns from 1 % or 10 % of the labels.

Not to be compared with `semi-frozen`, where only a linear layer learns. The labels are those of
`--labelled-list FILE`, or a share of each class by a seed.

*Source:* each preset's own; the lists are SimCLR's, arXiv:2002.05709.
"""

from collections.abc import Sequence

from pydantic import Field

from kdcache.evals.exam import Exam
from kdcache.evals.finetune import FinetuneSettings, finetune
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.protocols._labels import check_labels, labelled_part
from kdcache.evals.result import Score


class Config(FinetuneSettings):
    """A training, and how many labels it learns from."""

    percent: float = Field(gt=0, le=100)
    """Of the training images of each class."""


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    settings = _config(asked)
    part, labels = labelled_part(exam, settings.percent)
    return finetune(
        exam,
        part,
        exam.splits.queries,
        settings,
        view=asked.view,
        protocol=asked.family,
        setting={**asked.setting(), "backbone": "finetuned", "labels": labels},
    )


def _config(asked: Asked) -> Config:
    assert isinstance(asked.config, Config)
    return asked.config


def _check(exam: Exam, asked: Sequence[Asked]) -> None:
    check_labels(exam, asked, [_config(one).percent for one in asked])


_SWAV = "SwAV, arXiv:2006.09882, eval_semisup.py on 8 processes of 32 images"
_SSLIGHT = "SSLight, ICLR 2023, README; the batch size is not stated there"


def _swav(percent: float, lr: float, head_lr: float) -> Config:
    return Config(
        percent=percent, epochs=20, lr=lr, head_lr=head_lr, momentum=0.9, weight_decay=0.0,
        schedule="step", milestones=[12, 16], decay=0.2,
    )  # fmt: skip


def _sslight(percent: float) -> Config:
    return Config(
        percent=percent, epochs=60, lr=0.03, nesterov=True, weight_decay=0.0, schedule="cosine"
    )


PROTOCOL = Protocol(
    presets={
        "swav-1": Preset(_swav(1.0, 0.02, 5.0), _SWAV),
        "swav-10": Preset(_swav(10.0, 0.01, 0.2), _SWAV),
        "sslight-1": Preset(_sslight(1.0), _SSLIGHT),
        "sslight-10": Preset(_sslight(10.0), _SSLIGHT),
    },
    run=_run,
    check=_check,
    accepts=frozenset({"labelled_list"}),
)
