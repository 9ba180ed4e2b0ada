"""Files of rates: written, read, and refused."""

import pytest
from plan.test_run import RATES

from kdcache.errors import ConfigError
from kdcache.plan import check_about, load_rates, save_rates


def test_rates_come_back_as_they_were_written(tmp_path):
    about = {"teacher": 'timm:"x"\\y', "image_size": 32}
    for rates in (RATES.model_copy(update={"about": about}), RATES):
        save_rates(tmp_path / "rates.toml", rates)
        assert load_rates(tmp_path / "rates.toml") == rates


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("teacher_s = 0.02", "teacher_s = -1"), "teacher_s"),
        (("teacher_s = 0.02", ""), "teacher_s"),
        (("teacher_s = 0.02", "teacher_s = 0.02\ntaecher_s = 1.0"), "taecher_s"),
        (("teacher_s = 0.02", "teacher_s = nan"), "teacher_s"),
        (('"cpu"', '"tpu"'), "device"),
        (("cores = 2", "cores = 2.5"), "cores"),
        (("cores = 2", "cores = "), "not TOML"),
    ],
)
def test_a_file_that_says_nonsense_is_refused_by_name(tmp_path, change, words):
    path = tmp_path / "rates.toml"
    save_rates(path, RATES)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError, match=words):
        load_rates(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no rates"):
        load_rates(tmp_path / "none.toml")


def test_rates_of_another_teacher_are_refused():
    rates = RATES.model_copy(update={"about": {"teacher": "r50", "student": "resnet18"}})
    check_about(rates, {"teacher": "r50"})
    with pytest.raises(ConfigError, match="`r50`, and `r101`"):
        check_about(rates, {"teacher": "r101"})
    with pytest.raises(ConfigError, match="`colour`"):
        check_about(RATES.model_copy(update={"about": {"colour": "red"}}), {"teacher": "r50"})
