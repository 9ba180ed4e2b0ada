"""Recipes load, and wrong ones say what to mend."""

from dataclasses import dataclass

import pytest
import torch

from kdcache.errors import ConfigError
from kdcache.methods import available_methods
from kdcache.recipe import build_recipe, load_recipe, settle_precision


def test_method_brings_its_papers_schedule():
    recipe = load_recipe(method="simreg", student="resnet18", overrides=["train.epochs=7"])
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.first_epoch) == (7, 0.05, 1)
    recipe = load_recipe(method="seed", student="resnet18")
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.first_epoch) == (200, 0.03, 0)


def test_override_takes_toml_values_and_bare_words():
    recipe = load_recipe(
        method="seed",
        student="resnet18",
        overrides=[
            "run.precision=bf16",
            "method.target='feature'",
            "train.lr=1",
            "run.policy=weak",
        ],
    )
    assert recipe.run.precision == "bf16"
    assert recipe.method_config.target == "feature"
    assert recipe.train.lr == 1.0
    assert recipe.run.policy == "weak"


def test_auto_precision_is_settled_before_anything_is_written():
    recipe = load_recipe(method="simreg", student="resnet18")
    assert settle_precision(recipe, torch.device("cpu")).run.precision == "fp32"


@dataclass(frozen=True)
class Wrong:
    """A wrong setting, and what is said of it."""

    id: str
    override: str
    message: str
    hint: str


WRONG = [
    Wrong(
        "typo", "train.batchsize=8", "unknown key `train.batchsize`", "did you mean `batch_size`?"
    ),
    Wrong("table", "training.lr=1", "unknown table `training`", "method, student, train, run"),
    Wrong("type", "train.epochs='many'", "`train.epochs` is 'many'", "valid integer"),
    Wrong("range", "train.lr=-1", "`train.lr` is -1", "greater than 0; it is: Peak learning rate"),
    Wrong("choice", "run.precision=int4", "`run.precision` is 'int4'", "'auto', 'fp32', 'bf16'"),
    Wrong("knob", "method.tau=1", "unknown key `method.tau`", "known here:"),
    Wrong("method", "method.name=sead", "no method `sead`", "did you mean `seed`?"),
    Wrong("syntax", "epochs", "`--set epochs` cannot be read", "--set train.epochs=20"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_wrong_setting_says_what_to_mend(case):
    base = {"student": "resnet18"} | ({} if case.id == "method" else {"method": "seed"})
    with pytest.raises(ConfigError) as caught:
        load_recipe(**base, overrides=[case.override])
    assert case.message in str(caught.value)
    assert case.hint in caught.value.hint


def test_missing_method_or_student_is_asked_for():
    with pytest.raises(ConfigError, match="no method is given"):
        load_recipe(student="resnet18")
    with pytest.raises(ConfigError, match="no student is given"):
        load_recipe(method="simreg")


def test_file_that_is_no_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[method\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(tmp_path / "bad.toml")
    (tmp_path / "flat.toml").write_text("epochs = 3\n")
    with pytest.raises(ConfigError, match="`epochs` stands outside of a table"):
        load_recipe(tmp_path / "flat.toml")


@pytest.mark.parametrize("name", available_methods())
def test_every_method_has_a_recipe_of_its_own_settings(name):
    recipe = load_recipe(method=name, student="resnet18")
    assert build_recipe(recipe.to_dict()) == recipe
