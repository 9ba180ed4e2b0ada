import pytest

from kdcache.images.formats import has_image_name, why_no_image


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "b.c.Png", "a.tiff", "a.webp", "a.jfif"])
def test_images_are_known_by_their_extension_in_any_case(name):
    assert has_image_name(name)


@pytest.mark.parametrize("name", ["jpg", "a.txt", "a.jpg.txt", "a", ".jpg", "a.npy"])
def test_other_names_are_no_images(name):
    assert not has_image_name(name)


def test_an_empty_file_is_no_image():
    assert why_no_image(b"") == "the file is empty"


def test_the_first_bytes_of_what_is_no_image_are_shown():
    reason = why_no_image(b"hello world")
    assert reason == "starts with b'hello wo', which is no known image format"


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x08\0\0\0WEBPVP8 ", b"P6 1 1", b"BM"]
)
def test_known_first_bytes_are_taken(data):
    assert why_no_image(data) is None


def test_a_riff_file_that_is_sound_is_no_image():
    assert why_no_image(b"RIFF\x08\0\0\0WAVEfmt ") is not None
