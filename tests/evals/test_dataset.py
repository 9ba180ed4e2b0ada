"""The splits of a data folder are found, or the message says what was found instead."""

import numpy as np
import pytest
from PIL import Image

from kdcache.errors import ConfigError, DataError
from kdcache.evals import open_splits


def add_images(folder, *classes):
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name / "a.png")


def test_train_and_val_are_found(tmp_path):
    add_images(tmp_path / "train", "ant", "bee")
    add_images(tmp_path / "val", "ant", "bee")
    splits = open_splits(tmp_path)
    assert (len(splits.train), len(splits.test), splits.test_name) == (2, 2, "val")
    assert splits.train.classes == splits.test.classes == ("ant", "bee")


def test_test_is_taken_where_there_is_no_val(tmp_path):
    add_images(tmp_path / "train", "ant")
    add_images(tmp_path / "test", "ant")
    assert open_splits(tmp_path).test_name == "test"


def test_split_chooses_where_there_are_both(tmp_path):
    add_images(tmp_path / "train", "ant", "bee")
    add_images(tmp_path / "val", "ant")
    add_images(tmp_path / "test", "ant", "bee")
    assert len(open_splits(tmp_path).test) == 1
    assert len(open_splits(tmp_path, "test").test) == 2


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder `.*nowhere`"):
        open_splits(tmp_path / "nowhere")


def test_missing_train_says_what_is_there(tmp_path):
    add_images(tmp_path, "ant", "bee")
    with pytest.raises(ConfigError, match=r"has no train/: it holds ant/, bee/"):
        open_splits(tmp_path)


@pytest.mark.parametrize(("split", "wanted"), [(None, "val/ or test/"), ("test", "test/")])
def test_missing_test_split_says_what_is_there(tmp_path, split, wanted):
    add_images(tmp_path / "train", "ant")
    with pytest.raises(ConfigError, match=f"has no {wanted}: it holds train/"):
        open_splits(tmp_path, split)


def test_unknown_split_lists_the_known(tmp_path):
    add_images(tmp_path / "train", "ant")
    with pytest.raises(ConfigError, match="no split `tset`") as caught:
        open_splits(tmp_path, "tset")
    assert caught.value.hint == "there are: val, test"


def test_images_outside_class_folders_are_refused(tmp_path):
    add_images(tmp_path / "train", "ant")
    add_images(tmp_path, "val")
    with pytest.raises(DataError, match=r"1 of 1 images in `.*val` have no class"):
        open_splits(tmp_path)
