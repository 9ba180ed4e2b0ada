"""Times, worked out by hand."""

import pytest
from conftest import make_folder
from plan.test_run import RATES, question
from small import recipe_for

from kdcache.errors import ConfigError
from kdcache.plan import Machines, forecast_epochs, forecast_extraction


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("forecast") / "train", per_class=12)


@pytest.fixture(scope="module")
def asked(images, tiny_weights):
    """1,000 images in 2 views, batches of 16, and a student."""
    return question(images, tiny_weights, num_images=1000, student=recipe_for("simreg"))


GPU = RATES.model_copy(update={"device": "cuda", "cores": 8})


def test_the_slower_side_binds_beside_a_gpu(asked):
    found = forecast_extraction(asked, GPU, Machines(1, 1, 4))
    # 3 pieces of 256 rows and one of 232: 32, 32, 32 and 29 batches of 16 views.
    assert found.stages == pytest.approx(
        {
            "index": 1000 * 1e-3 / 4,
            "images": 1000 * (4e-3 + 2 * 1e-3) / 4,
            "teacher": 125 * 16 * 2e-2,
            "write": 2000 * 1e-4,
            "seal": 2000 * 1e-5,
        }
    )
    assert found.total_s == pytest.approx(0.25 + 40 + 0.2 + 0.02)
    assert found.binds == "teacher"
    slow = GPU.model_copy(update={"decode_s": 1.0})
    found = forecast_extraction(asked, slow, Machines(1, 1, 4))
    assert found.total_s == pytest.approx(0.25 + 1000 * 1.002 / 4 + 0.02)
    assert found.binds == "images"


def test_the_last_batch_of_a_piece_is_filled_up(images, tiny_weights):
    asked = question(images, tiny_weights, num_images=10, batch_size=64)
    assert forecast_extraction(asked, GPU, Machines(1, 1, 4)).stages["teacher"] == pytest.approx(
        64 * 2e-2
    )


def test_on_a_cpu_all_of_the_work_shares_the_cores(asked):
    found = forecast_extraction(asked, RATES, Machines(1, 1, 2))
    work = 1000 * 6e-3 + 2000 * (2e-2 + 1e-4)
    assert found.total_s == pytest.approx(0.5 + max(40.2, work / 2) + 0.02)
    both = RATES.model_copy(update={"threads": 2})
    found = forecast_extraction(asked, both, Machines(1, 1, 2))
    assert found.total_s == pytest.approx(0.5 + (6 + 2 * 40.2) / 2 + 0.02)
    assert found.binds == "processor"


def test_without_workers_one_thing_comes_after_the_other(asked):
    found = forecast_extraction(asked, RATES, Machines(1, 1, 0))
    assert found.total_s == pytest.approx(1.0 + 6 + 40.2 + 0.02)


def test_more_gpus_share_the_teacher_but_neither_the_index_nor_the_seal(asked):
    one = forecast_extraction(asked, GPU, Machines(1, 1, 4)).stages
    many = forecast_extraction(asked, GPU, Machines(5, 2, 4)).stages
    for stage in ("teacher", "write"):
        assert many[stage] == pytest.approx(one[stage] / 10)
    assert many["images"] == pytest.approx(one["images"] / 10)  # 40 processes on 40 cores
    crowded = forecast_extraction(asked, GPU, Machines(5, 4, 4)).stages
    assert crowded["images"] == pytest.approx(one["images"] / 10)  # 80 processes on 40 cores
    for stage in ("index", "seal"):
        assert many[stage] == one[stage]


def test_a_live_teacher_costs_its_batches_filled_up_as_in_the_extraction(asked):
    found = forecast_epochs(asked, GPU, 4)
    shown = 1000 // 8 * 8
    assert found.cached.stages == pytest.approx(
        {"images": shown * (4e-3 + 1e-3) / 4, "step": shown * 1e-2}
    )
    # Batches of 8 images are shown as 16: those of the extraction, of whole images.
    assert found.live.stages["teacher"] == pytest.approx(2 * shown * 2e-2)
    assert found.live.total_s == pytest.approx(shown * (1e-2 + 2 * 2e-2))
    assert found.break_even(100.0) == pytest.approx(100 / (2 * shown * 2e-2))


def test_a_teacher_of_another_size_has_its_views_rendered_too(images, tiny_weights):
    student = recipe_for("simreg", student={"image_size": 64})
    asked = question(images, tiny_weights, num_images=1000, student=student)
    live = forecast_epochs(asked, GPU, 4).live
    assert live.stages["images"] == pytest.approx(1000 * (4e-3 + 1e-3 + 4e-3 + 1e-3) / 4)


def test_rates_without_a_student_are_refused_where_one_is_asked_about(asked):
    with pytest.raises(ConfigError, match="nothing of a student"):
        forecast_epochs(asked, GPU.model_copy(update={"student_s": None}), 4)
