import pytest

from kdcache.errors import DataError
from kdcache.images import open_images


def write(photos, text, name="list.csv"):
    path = photos / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(DataError) as caught:
        open_images(path)
    return caught.value


def test_a_list_names_paths_and_labels(photos):
    images = open_images(
        write(photos, "path,label\ncat/b.jpg,cat\nant/y.Jpeg,ant\ncat/a.JPG,cat\n")
    )
    assert list(images.paths) == ["ant/y.Jpeg", "cat/a.JPG", "cat/b.jpg"]
    assert images.classes == ("ant", "cat")
    assert images.labels.tolist() == [0, 1, 1]
    assert images.read(0) == (photos / "ant/y.Jpeg").read_bytes()


def test_a_tab_separated_list_may_have_other_columns_and_a_byte_order_mark(photos):
    text = "\ufeffsplit\tpath\ntrain\tcat/b.jpg\n"
    images = open_images(write(photos, text, "list.TSV"))
    assert list(images.paths) == ["cat/b.jpg"]
    assert images.classes == ()
    assert images.labels.tolist() == [-1]


def test_a_row_may_lack_its_label(photos):
    images = open_images(write(photos, "label,path\n,cat/a.JPG\n7,cat/b.jpg\n"))
    assert images.classes == ("7",)
    assert images.labels.tolist() == [-1, 0]


def test_paths_are_normalised_and_may_be_absolute(photos):
    text = f"path\n./cat//b.jpg\nant\\y.Jpeg\n{photos}/cat/a.JPG\n"
    images = open_images(write(photos, text))
    assert list(images.paths) == [f"{photos}/cat/a.JPG", "ant/y.Jpeg", "cat/b.jpg"]
    assert images.read(0) == (photos / "cat/a.JPG").read_bytes()
    assert images.read(2) == (photos / "cat/b.jpg").read_bytes()


def test_a_path_given_twice_is_refused_with_both_lines(photos):
    error = refusal(write(photos, "path\ncat/a.JPG\ncat/b.jpg\n./cat/a.JPG\n"))
    assert "`cat/a.JPG` is on line 2 and on line 4" in str(error)


def test_missing_files_are_counted_and_the_first_named(photos):
    rows = "".join(f"no{number}.jpg\n" for number in range(5))
    error = refusal(write(photos, "path\ncat/a.JPG\n" + rows))
    assert "5 of 6 files" in str(error)
    assert "`no0.jpg` (line 3), `no1.jpg` (line 4), `no2.jpg` (line 5)" in str(error)
    assert str(photos) in error.hint


def test_a_list_without_the_column_is_refused_and_its_columns_are_named(photos):
    error = refusal(write(photos, "cat/a.JPG,cat\n"))
    assert "must name a column `path`; it names `cat/a.JPG`, `cat`" in str(error)
    assert error.hint == "make the first line `path` or `path,label`"


def test_an_empty_list_is_refused(photos):
    assert "it names nothing" in str(refusal(write(photos, "")))
    assert "lists no images" in str(refusal(write(photos, "path\n")))


@pytest.mark.parametrize("row", ["cat/a.JPG", "cat/a.JPG,cat,more"])
def test_a_row_of_another_length_is_refused_with_its_line(photos, row):
    error = refusal(write(photos, f"path,label\n{row}\n"))
    assert "line 2 of" in str(error)
    assert "more or fewer cells" in str(error)


def test_a_row_without_a_path_is_refused(photos):
    assert "line 2 of" in str(refusal(write(photos, "path,label\n,cat\n")))


def test_an_open_quotation_is_refused(photos):
    assert "not well-formed" in str(refusal(write(photos, 'path\n"cat/a.JPG\n')))


def test_a_list_that_is_not_utf8_is_refused(photos):
    path = photos / "list.csv"
    path.write_bytes("path\ndog/é.webp\n".encode("latin-1"))
    assert "iconv" in refusal(path).hint
