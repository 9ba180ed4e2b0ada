"""The shelf of protocols: its presets are the papers', and no other setting bears their names."""

import importlib
import re

import pytest

from kdcache.errors import ConfigError
from kdcache.evals import (
    ALIASES,
    about_protocol,
    ask,
    available_presets,
    available_protocols,
    get_protocol,
)

MOCO = {"lr": 30.0, "batch_size": 256, "weight_decay": 0.0, "momentum": 0.9, "epochs": 100,
        "features": "raw", "start": "normal"}  # fmt: skip
SIMREG = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 256, "epochs": 40,
          "schedule": "step", "milestones": [15, 30], "decay": 0.1,
          "features": "standardised", "start": "uniform"}  # fmt: skip
COSINE = {"schedule": "cosine", "final_lr": 0.0, "warmup_epochs": 0, "per_step": False}
# methods.md, section 10, written down a second time.
PAPERS = {
    "knn:simreg": {"k": [1, 20], "vote": "plain", "ties": "share"},
    "knn:compress": {"k": [1], "vote": "plain", "ties": "share"},
    "knn:dino": {"k": [10, 20, 100, 200], "vote": "weighted", "temperature": 0.07},
    "knn:seed": {"k": [10], "vote": "plain"},
    "linear:moco": {**MOCO, "schedule": "step", "milestones": [60, 80], "decay": 0.1},
    "linear:disco": {
        **MOCO, "lr": 3.0, "schedule": "step", "decay": 0.5,
        "milestones": [5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 80],
    },
    "linear:compress": SIMREG,
    "linear:simreg": SIMREG,
    "linear:bingo": {**MOCO, **COSINE, "epochs": 120, "lr": 30.0, "final_lr": 0.01},
    "linear:bingo-efficientnet": {**MOCO, **COSINE, "epochs": 120, "lr": 3.0, "final_lr": 0.001},
    "linear:swav": {**MOCO, **COSINE, "lr": 0.3, "weight_decay": 1e-6},
    "linear:dino": {
        **MOCO, **COSINE, "lr": 0.001, "lr_per_256": True, "batch_size": 1024, "last_blocks": 4,
    },
    "linear:dino-base": {**COSINE, "lr": 0.001, "last_blocks": 1, "patch_mean": True},
    "semi-frozen:disco-1": {
        **MOCO, "lr": 3.0, "schedule": "step", "milestones": [60, 80], "decay": 0.5, "percent": 1.0,
    },
    "semi-frozen:compress-10": {**SIMREG, "percent": 10.0},
    "semi-finetune:swav-1": {
        "epochs": 20, "lr": 0.02, "head_lr": 5.0, "weight_decay": 0.0, "schedule": "step",
        "milestones": [12, 16], "decay": 0.2, "percent": 1.0, "batch_size": 256,
    },
    "semi-finetune:swav-10": {"lr": 0.01, "head_lr": 0.2, "percent": 10.0, "epochs": 20},
    "semi-finetune:sslight-10": {
        "lr": 0.03, "nesterov": True, "epochs": 60, "schedule": "cosine", "weight_decay": 0.0,
    },
    "transfer-linear:disco": {"lr": 3.0, "epochs": 200, "milestones": [], "schedule": "step"},
    "cluster:compress": {"iterations": 20},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_presets_have_the_papers_settings(name):
    (asked,) = ask([name])
    settings = asked.config.model_dump()
    assert {key: settings[key] for key in PAPERS[name]} == PAPERS[name]
    assert asked.setting() == {"preset": name.partition(":")[2]}


@pytest.mark.parametrize("family", available_protocols())
def test_every_protocol_says_what_it_does_and_where_it_is_from(family):
    module = importlib.import_module(f"kdcache.evals.protocols.{family.replace('-', '_')}")
    assert "*Source:*" in module.__doc__
    assert about_protocol(family).endswith(".")
    for name, preset in get_protocol(family).presets.items():
        assert preset.source
        assert type(preset.config).model_validate(preset.config.model_dump()) == preset.config
        assert preset.paper or name in ("", "weighted")
        if preset.paper:
            assert re.search(r"arXiv:\d{4}\.\d{5}|ICLR 2023", preset.source), name


def test_settings_that_differ_take_the_presets_name_away():
    (asked,) = ask(["linear:moco"], overrides=["linear.epochs=2", "linear.lr=30.0"])
    assert asked.setting() == {"preset": "not moco", "epochs": 2}
    (same,) = ask(["linear:moco"], overrides=["linear.epochs=100"], policy="center")
    assert same.setting() == {"preset": "moco"}
    (full,) = ask(["linear:moco"], policy="full")
    assert full.setting() == {"preset": "not moco", "view": "full"}


def test_settings_hold_for_all_presets_of_a_family():
    asked = ask(["linear:moco", "linear:swav", "knn"], overrides=["linear.epochs=2"], ks=[5])
    assert [one.config.model_dump().get("epochs") for one in asked] == [2, 2, None]
    assert asked[2].config.k == [5]


def test_ks_are_no_papers():
    knn, dino = ask(["knn", "knn:dino"], ks=[3])
    assert (knn.config.k, dino.config.k) == ([3], [10, 20, 100, 200])
    (weighted,) = ask(["knn:weighted"], ks=[3])
    assert weighted.setting() == {"k": "[3]"}


def test_ks_that_nobody_asked_for_are_refused():
    with pytest.raises(ConfigError, match="--k 3,4 is given, but neither knn nor") as caught:
        ask(["knn:dino", "fast-linear"], ks=[3, 4])
    assert "--set knn.k" in caught.value.hint


def test_names_of_old_lead_to_the_new_ones():
    assert [one.name for one in ask(list(ALIASES))] == list(ALIASES.values())
    assert set(ALIASES.values()) < set(available_presets())
    assert len(ask(["linear", "fast-linear"])) == 1


@pytest.mark.parametrize(
    ("names", "overrides", "message", "hint"),
    [
        (["knn:dinno"], [], "no protocol `knn:dinno`", "did you mean `knn:dino`"),
        (["linaer:moco"], [], "no protocol `linaer:moco`", "did you mean `linear:moco`"),
        (["linear:mooc"], [], "no protocol `linear:mooc`", "linear:disco"),
        (["knn"], ["linear.epochs=2"], "changes a protocol that is not asked for", "are: knn"),
        (["knn"], ["knn.votes=plain"], "unknown key `knn.votes`", "`vote`"),
        (["knn"], ["knn.k=10"], "`knn.k` is 10", "list"),
        (["knn"], ["k=10"], "cannot be read", "--set"),
    ],
)
def test_what_there_is_not_is_refused(names, overrides, message, hint):
    with pytest.raises(ConfigError) as caught:
        ask(names, overrides=overrides)
    assert message in str(caught.value)
    assert hint in caught.value.hint
