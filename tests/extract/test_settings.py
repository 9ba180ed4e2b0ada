"""What no teacher can be asked is refused at once; the options of the command say the same."""

import inspect

import pytest
from kdcache_cli.extract import extract
from kdcache_cli.main import app
from typer.testing import CliRunner

from kdcache.errors import ConfigError
from kdcache.extract import Extraction


@pytest.mark.parametrize("name", Extraction.model_fields)
def test_defaults_are_those_of_the_command(name):
    option = inspect.signature(extract).parameters["views" if name == "num_views" else name]
    assert option.default == Extraction.model_fields[name].default


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "weka"}, "`weka`"),
        ({"policy": "multicrop", "num_views": 8}, "no whole number of sets"),
        ({"arrays": ("features",)}, "gives no `features`"),
        ({"arrays": ("",)}, "gives no ``"),
        ({"arrays": ()}, "no array"),
    ],
)
def test_what_no_teacher_can_be_asked_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Extraction(**settings)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policy", "weka", "`weka`"),
        ("--arrays", "", "gives no ``"),
        ("--arrays", "feature,embeddings", "gives no `embeddings`"),
    ],
)
def test_wrong_words_are_told_before_a_teacher_is_looked_for(
    option, value, message, tiny_images, tmp_path
):
    """There is no such teacher either: that would be told, were it looked for first."""
    words = ["--teacher", "nobody", "--data", str(tiny_images), "--out", str(tmp_path / "c")]
    told = CliRunner().invoke(app, ["extract", *words, option, value])
    assert isinstance(told.exception, ConfigError)
    assert message in str(told.exception)
