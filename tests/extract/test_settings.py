"""The settings of an extraction and the options of its command are one thing said twice."""

import inspect

import pytest
from kdcache_cli.extract import extract

from kdcache.extract import Extraction


@pytest.mark.parametrize("name", Extraction.model_fields)
def test_defaults_are_those_of_the_command(name):
    option = inspect.signature(extract).parameters["views" if name == "num_views" else name]
    assert option.default == Extraction.model_fields[name].default
