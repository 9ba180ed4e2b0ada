"""Linear: a linear layer on frozen features of augmented views, as each paper trains it.

Presets move one checkpoint by several tenths of a point (a MoCo-v2 ResNet-50 is 71.1 by `moco` and
70.8 by `compress`), so a figure without its preset says little. Views are drawn anew in every
epoch, and the backbone is in evaluation mode, its statistics included. Pixels are normalised as the
network's own weights want it: SwAV's teachers bring the std of 0.228 that its protocol has.

*Source:* each preset's own; `methods.md` section 10.
"""

from collections.abc import Sequence

from pydantic import Field

from kdcache.evals.exam import Exam
from kdcache.evals.probe import SIMREG, ProbeSettings, probe_scores
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.protocols._probes import fit_probes
from kdcache.evals.readout import read_last_blocks
from kdcache.evals.result import Score


class Config(ProbeSettings):
    """A layer, and where the network is read."""

    last_blocks: int = Field(default=0, ge=0)
    """Class tokens of so many last blocks, of a network that has them; 0: the pooled feature."""
    patch_mean: bool = False
    """Beside them the mean of the last block's patch tokens."""


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    """One pass over the augmented views for all presets that read the network at one place."""
    found: dict[str, list[Score]] = {}
    for place in dict.fromkeys(_readout(one) for one in asked):
        group = [one for one in asked if _readout(one) == place]
        found |= _pass(exam, group, *place)
    return [score for one in asked for score in found[one.name]]


def _pass(
    exam: Exam, asked: Sequence[Asked], view: str, last_blocks: int, patch_mean: bool
) -> dict[str, list[Score]]:
    subject = exam.subject
    if last_blocks:
        subject = read_last_blocks(subject, last_blocks, patch_mean)
    train = exam.features(exam.splits.gallery, view, subject)
    test = exam.features(exam.splits.queries, view, subject)
    settings = [config(one) for one in asked]
    probes = fit_probes(
        exam, subject, exam.splits.gallery, train, settings, "linear, augmented views"
    )
    return {
        one.name: probe_scores(probe, train, test, protocol=one.family, setting=one.setting())
        for one, probe in zip(asked, probes, strict=True)
    }


def config(asked: Asked) -> Config:
    """The settings, which are of this family."""
    assert isinstance(asked.config, Config)
    return asked.config


def _readout(asked: Asked) -> tuple[str, int, bool]:
    settings = config(asked)
    return asked.view, settings.last_blocks, settings.patch_mean


def _moco(**changes: float | int | str | bool | list[int]) -> Config:
    """MoCo's settings, which most others began from."""
    moco = Config(
        epochs=100, batch_size=256, lr=30.0, momentum=0.9, weight_decay=0.0,
        schedule="step", milestones=[60, 80], decay=0.1,
    )  # fmt: skip
    return moco.model_copy(update=changes)


_DISCO = _moco(lr=3.0, milestones=[5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 80], decay=0.5)
_BINGO = _moco(epochs=120, schedule="cosine", milestones=[], lr=30.0, final_lr=0.01)
_DINO = _moco(lr=0.001, lr_per_256=True, batch_size=1024, schedule="cosine", milestones=[])
_SIMREG = Config.model_validate(SIMREG.model_dump())

PROTOCOL = Protocol(
    presets={
        "moco": Preset(_moco(), "MoCo v2, arXiv:2003.04297, main_lincls.py; SEED's is the same"),
        "disco": Preset(
            _DISCO, "DisCo, arXiv:2104.09124, README: lr 3, halved at 11 epochs (30 stands once)"
        ),
        "compress": Preset(_SIMREG, "CompRess, arXiv:2010.14713, eval_linear.py"),
        "simreg": Preset(_SIMREG, "SimReg, arXiv:2201.05131: CompRess's eval_linear.py"),
        "bingo": Preset(_BINGO, "BINGO, arXiv:2107.01691, README: ResNets"),
        "bingo-efficientnet": Preset(
            _BINGO.model_copy(update={"lr": 3.0, "final_lr": 0.001}),
            "BINGO, arXiv:2107.01691, README: EfficientNets",
        ),
        "swav": Preset(
            _moco(lr=0.3, weight_decay=1e-6, schedule="cosine", milestones=[]),
            "SwAV, arXiv:2006.09882, eval_linear.py on 8 processes of 32 images",
        ),
        "dino": Preset(
            _DINO.model_copy(update={"last_blocks": 4}),
            "DINO, arXiv:2104.14294, eval_linear.py on 8 processes of 128 images; ViT-S: class "
            "tokens of 4 blocks, networks without them: the pooled feature",
        ),
        "dino-base": Preset(
            _DINO.model_copy(update={"last_blocks": 1, "patch_mean": True}),
            "DINO, arXiv:2104.14294, eval_linear.py; ViT-B: last class token and mean patch",
        ),
    },
    run=_run,
)
