"""Transfer-finetune: the whole network learns another labelled data set.

`--transfer DIR` holds train/ and val/ or test/. No paper's protocol: those that finetune search
learning rates for each data set.

*Source:* the settings are SSLight's for few labels (ICLR 2023, README), which name no search.
"""

from collections.abc import Sequence

from kdcache.evals.exam import Exam
from kdcache.evals.finetune import FinetuneSettings, finetune
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.protocols._transfer import check_transfer, transfer_name, transfer_splits
from kdcache.evals.result import Score


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    settings, splits = asked.config, transfer_splits(exam)
    assert isinstance(settings, FinetuneSettings)
    return finetune(
        exam,
        splits.gallery,
        splits.queries,
        settings,
        view=asked.view,
        protocol=asked.family,
        setting={**asked.setting(), "backbone": "finetuned", "data": transfer_name(splits)},
    )


PROTOCOL = Protocol(
    presets={
        "": Preset(
            FinetuneSettings(
                epochs=60, lr=0.03, nesterov=True, weight_decay=0.0, schedule="cosine"
            ),
            "SSLight's settings; nobody's transfer protocol",
            paper=False,
        )
    },
    run=_run,
    check=check_transfer,
    requires=frozenset({"transfer"}),
)
