import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.errors import DataError
from kdcache.images.image_set import PathColumn, label_column

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20)


@given(NAMES)
def test_a_path_column_reads_as_the_list_it_was_made_of(paths):
    column = PathColumn(paths)
    assert list(column) == paths
    assert len(column) == len(paths)
    assert list(pickle.loads(pickle.dumps(column))) == paths


@given(NAMES.filter(bool), st.integers(-30, 30), st.integers(-30, 30))
def test_a_path_column_is_indexed_as_a_list_is(paths, start, stop):
    column = PathColumn(paths)
    assert column[start:stop] == paths[start:stop]
    assert column[-1] == paths[-1]
    with pytest.raises(IndexError):
        column[len(paths)]


def test_a_path_column_takes_numpy_rows():
    assert PathColumn(["a", "bc"])[np.int64(1)] == "bc"


def test_a_name_that_is_not_utf8_is_refused_and_shown():
    with pytest.raises(DataError, match=r"`'a\\udcff\.jpg'` is not UTF-8"):
        PathColumn(["a\udcff.jpg"])


def test_labels_are_places_in_the_classes_and_minus_one_without_a_name():
    labels = label_column(["cat", None, "ant"], ("ant", "cat"))
    np.testing.assert_array_equal(labels, np.array([1, -1, 0], dtype=np.int32))
