"""Every constant of every method, as methods.md has it from paper or code; what is ours says so."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from kdcache.methods import available_methods, get_method

SCHEDULE = {
    "batch_size": 256,
    "lr_per_256": False,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "milestones": [],
    "decay": 0.1,  # of no effect on a cosine
    "warmup_epochs": 0,
    "first_epoch": 0,
    "per_step": False,
}
STEPS = {"schedule": "step", "milestones": [90, 120], "decay": 0.2}
SAMPLING = {"sampled": 0, "nearest": 64, "nprobe": 0}  # ours; off


@dataclass(frozen=True)
class Paper:
    """What a method is trained with."""

    views: str
    epochs: int
    lr: float
    config: dict[str, Any]
    schedule: dict[str, Any] = field(default_factory=dict)


PAPERS = {
    "bingo": Paper(
        "moco_v2",
        200,
        0.03,
        {
            "queue": 65536,
            "temperature": 0.2,
            "hidden_dim": 2048,
            "bag_from_epoch": 11,
            "target": "embedding",
            "mask_own": True,  # ours
        },
    ),
    "compress": Paper(
        "compress",
        130,
        0.01,
        {"queue": 128000, "temperature": 0.04, "momentum_student": True, "momentum": 0.999},
        STEPS,
    ),
    "compress_1q": Paper(
        "compress",
        130,
        0.01,
        {"queue": 128000, "temperature": 0.04, "mask_own": True, **SAMPLING},
        STEPS,
    ),
    # The weight, the neighbours and the schedule are ours: the paper's are unverified.
    "coss": Paper("weak", 130, 0.05, {"space_weight": 1.0, "neighbours": 1}, {"first_epoch": 1}),
    "disco": Paper(
        "moco_v2",
        200,
        0.03,
        {
            "queue": 65536,
            "temperature": 0.2,
            "momentum": 0.999,
            "distill_weight": 32.0,
            "distill_only": False,
            "hidden_dim": 2048,
            "target": "embedding",
        },
    ),
    # The schedule is CompRess's, and so ours.
    "lightly": Paper(
        "moco_v2", 130, 0.01, {"queue": 8192, "temperature": 0.07, "mask_own": True}, STEPS
    ),
    "moco": Paper(
        "moco_v2",
        200,
        0.03,
        {
            "queue": 65536,
            "temperature": 0.2,
            "momentum": 0.999,
            "hidden_dim": 0,
            "embedding_dim": 128,
        },
    ),
    # A reconstruction: DisCo's constants.
    "retro": Paper(
        "moco_v2",
        200,
        0.03,
        {
            "adapter": "linear_bn_relu",
            "queue": 65536,
            "temperature": 0.2,
            "momentum": 0.999,
            "distill_weight": 32.0,
            "symmetric": False,
        },
    ),
    "seed": Paper(
        "moco_v2",
        200,
        0.03,
        {
            "queue": 65536,
            "student_temperature": 0.2,
            "teacher_temperature": 0.01,
            "hidden_dim": 0,
            "small_patches": 0,
            "target": "embedding",
            "center": False,
            "mask_own": True,  # ours
            **SAMPLING,
        },
        {"lr_per_256": True},
    ),
    "simreg": Paper("weak", 130, 0.05, {"center": False}, {"first_epoch": 1}),
    # The schedule is SimReg's and the rate ours: the paper distils classifiers.
    "vkd": Paper("weak", 130, 0.75, {}, {"first_epoch": 1}),
}


@pytest.mark.parametrize("name", available_methods())
def test_settings_are_the_papers(name):
    method, paper = get_method(name), PAPERS[name]
    assert method.views == paper.views
    assert method.Config().model_dump() == paper.config
    expected = {**SCHEDULE, "epochs": paper.epochs, "lr": paper.lr, **paper.schedule}
    assert method.optimisation.model_dump() == expected
