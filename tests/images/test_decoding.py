import io
import os
import signal
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from kdcache.images import MAX_PIXELS, Unreadable, decode, decoder_description, decoding
from kdcache.images.decoding import JPEG_DECODERS

SHARED = Path(os.environ.get("KDCACHE_SHARED", Path(__file__).parents[2].parent / "shared"))


def torchvision_decoder():
    """The fourth library, which we do not use: its decoders are deprecated since 0.29."""
    decode_jpeg = getattr(pytest.importorskip("torchvision").io, "decode_jpeg", None)
    if decode_jpeg is None:
        pytest.skip("this torchvision decodes no more")
    import torch

    def decode_one(data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(encoded, mode="RGB").permute(1, 2, 0).numpy()

    return "torchvision", decode_one


@pytest.fixture(params=[*JPEG_DECODERS, "torchvision"])
def library(request, monkeypatch):
    """Each of the JPEG libraries in turn, put where `decode` finds it."""
    pytest.importorskip(request.param)
    name, decoder = JPEG_DECODERS.get(request.param, torchvision_decoder)()
    monkeypatch.setattr("kdcache.images.decoding._decode_common_jpeg", decoder)
    return name


def pillow(data):
    """The reference: what torchvision's ImageFolder makes of a file."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def reason(data):
    with pytest.raises(Unreadable) as caught:
        decode(data)
    return str(caught.value)


def assert_pixels(data, expected):
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


# JPEG: the same bits from every library


SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


@pytest.mark.parametrize("progressive", [0, 1], ids=["baseline", "progressive"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_library_gives_the_bits_of_pillow(library, picture, sampling, progressive):
    options = [
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling],
        cv2.IMWRITE_JPEG_PROGRESSIVE, progressive,
    ]  # fmt: skip
    data = cv2.imencode(".jpg", picture, options)[1].tobytes()
    assert_pixels(data, pillow(data))


@pytest.mark.parametrize("side", [1, 2, 7, 8, 9, 17])
def test_every_library_agrees_on_tiny_jpegs(library, encode, picture, side):
    data = encode(picture[:side, : side + 1], "JPEG", subsampling=2)
    assert_pixels(data, pillow(data))


def test_every_library_makes_rgb_of_grey(library, encode, picture):
    data = encode(picture[:, :, 0].copy(), "JPEG")
    assert_pixels(data, pillow(data))
    assert (np.ptp(decode(data), axis=2) == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"keep_rgb": True},
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"icc_profile": b"no profile at all, and never looked at"},
        {"comment": b"\xff\xd9 an end mark in a comment"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_library_agrees_on_rare_jpegs(library, encode, picture, options):
    data = encode(picture, "JPEG", **options)
    assert_pixels(data, pillow(data))


def test_the_exif_orientation_is_ignored(library, encode, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    data = encode(picture, "JPEG", exif=exif)
    assert_pixels(data, pillow(encode(picture, "JPEG")))


def test_what_follows_the_end_of_a_jpeg_is_ignored(library, encode, picture):
    data = encode(picture, "JPEG")
    assert_pixels(data + b"camera maker's rubbish", pillow(data))


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_a_jpeg_of_four_inks_is_decoded_by_pillow(encode, picture, mode):
    data = encode(Image.fromarray(picture).convert("CMYK"), "JPEG")
    if mode == "YCCK":  # the same file, but for the transform that Adobe's segment names
        at = data.index(b"Adobe") + 11
        data = data[:at] + b"\x02" + data[at + 1 :]
    assert_pixels(data, pillow(data))


def test_every_library_gives_the_bits_of_pillow_on_real_photographs(library):
    folder = SHARED / "data" / "realres"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    paths = sorted(folder.iterdir())
    assert len(paths) == 100
    # Those under a megabyte: the few large ones would take most of the time.
    for path in (path for path in paths if path.stat().st_size < 1_000_000):
        data = path.read_bytes()
        np.testing.assert_array_equal(decode(data), pillow(data), err_msg=path.name)


def test_the_decoder_is_named_with_its_version():
    import simplejpeg

    assert decoder_description() == {
        "jpeg": f"simplejpeg {simplejpeg.__version__}",
        "other": f"pillow {Image.__version__}",
    }


# JPEG: what is damaged


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_a_jpeg_cut_off_anywhere_is_unreadable(library, encode, picture, progressive):
    data = encode(picture, "JPEG", progressive=progressive)
    for size in [3, 4, 20, *range(100, len(data), 61), len(data) - 2, len(data) - 1]:
        assert "cut off" in reason(data[:size]), size


def test_a_jpeg_filled_up_with_zeros_is_unreadable(library, encode, picture):
    data = encode(picture, "JPEG")
    half = len(data) // 2
    assert "no end mark" in reason(data[:half] + bytes(len(data) - half))


def test_an_end_mark_in_the_thumbnail_does_not_count(library, encode, picture):
    thumbnail = encode(picture[:8, :8], "JPEG")
    data = encode(picture, "JPEG", exif=b"Exif\0\0" + thumbnail)
    assert_pixels(data, pillow(encode(picture, "JPEG")))
    assert "no end mark" in reason(data[:-2])


@pytest.mark.parametrize("fill", [b"\xff\xd9", b"\xff\xff\xff\xd9"])
def test_a_half_jpeg_with_an_end_mark_is_unreadable_with_simplejpeg(encode, picture, fill):
    assert decoder_description()["jpeg"].startswith("simplejpeg")
    data = encode(picture, "JPEG")
    assert "damaged" in reason(data[: len(data) * 2 // 3] + fill)


def test_bytes_that_belong_nowhere_are_unreadable_with_simplejpeg(encode, picture):
    # The decoder lost its place somewhere before: libjpeg's only sign of most flipped bits.
    data = encode(picture, "JPEG")
    assert "extraneous bytes" in reason(data[:-2] + bytes(range(50)) + data[-2:])


def test_a_jpeg_without_its_tables_is_unreadable(library, encode, picture):
    data = bytearray(encode(picture, "JPEG"))
    data[data.index(b"\xff\xdb") + 1] = 0xFE  # a quantisation table becomes a comment
    assert reason(bytes(data)).startswith("the image is damaged")


def with_size(data, height, width):
    """A JPEG whose frame header claims another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_a_jpeg_of_too_many_pixels_is_refused_by_its_header(library, encode, picture):
    found = reason(with_size(encode(picture, "JPEG"), 65_000, 64_000))
    assert found == f"it has more pixels than the {MAX_PIXELS:,} that are taken: 64000 x 65000"


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_a_jpeg_without_pixels_is_unreadable(encode, picture, height, width):
    data = with_size(encode(picture, "JPEG"), height, width)
    assert reason(data) == f"it is {width} x {height} pixels"


def test_a_jpeg_of_twelve_bits_is_unreadable(encode, picture):
    data = bytearray(encode(picture, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    reason(bytes(data))


# Other formats


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_format_gives_its_pixels(encode, picture, kind):
    assert_pixels(encode(picture, kind), picture)


def test_a_webp_gives_its_pixels(encode, picture):
    assert_pixels(encode(picture, "WEBP", lossless=True), picture)


def test_grey_becomes_rgb(encode, picture):
    grey = picture[:, :, 0].copy()
    for kind in ["PNG", "PPM", "TIFF", "BMP"]:
        assert_pixels(encode(grey, kind), np.stack([grey] * 3, axis=2))


def test_alpha_is_dropped(encode, picture):
    alpha = picture[:, :, :1] // 2
    assert_pixels(encode(np.concatenate([picture, alpha], axis=2), "PNG"), picture)
    grey = Image.fromarray(picture[:, :, 0].copy())
    grey.putalpha(Image.fromarray(alpha[:, :, 0].copy()))
    assert grey.mode == "LA"
    assert_pixels(encode(grey, "PNG"), np.stack([picture[:, :, 0]] * 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))], ids=["no", "one", "many"])
def test_a_palette_becomes_its_colours(encode, picture, transparency):
    image = Image.fromarray(picture).quantize(256)
    expected = np.array(image.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    assert_pixels(encode(image, "PNG", **options), expected)


def test_one_bit_becomes_black_and_white(encode, picture):
    image = Image.fromarray(picture).convert("1")
    assert_pixels(encode(image, "PNG"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_half_and_is_not_clipped(encode, kind):
    deep = np.arange(0, 65536, 17, dtype=np.uint16).reshape(16, -1)
    expected = np.stack([(deep >> 8).astype(np.uint8)] * 3, axis=2)
    assert_pixels(encode(deep, kind), expected)


def test_a_big_endian_sixteen_bit_tiff_is_the_same(encode):
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(4, 16)
    data = encode(Image.frombytes("I;16B", (16, 4), deep.astype(">u2").tobytes()), "TIFF")
    assert data.startswith(b"MM")
    assert_pixels(data, np.stack([(deep >> 8).astype(np.uint8)] * 3, axis=2))


def png(width, height, bits, colour, rows):
    """A PNG written by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_sixteen_bit_rgb_png_keeps_its_upper_half():
    deep = np.random.default_rng(0).integers(0, 65536, (3, 4, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    assert_pixels(png(4, 3, 16, 2, rows), (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_taken(encode, kind):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ["red", "lime", "blue"]]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_pixels(data, np.broadcast_to(np.array([255, 0, 0], np.uint8), (5, 6, 3)))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_pixels_of_32_bits_are_unreadable_and_the_mode_is_named(encode, mode, dtype):
    data = encode(np.full((3, 4), 70_000, dtype=dtype), "TIFF")
    assert f"mode `{mode}`" in reason(data)


def test_colours_of_another_space_are_unreadable_and_the_mode_is_named(encode):
    assert "mode `LAB`" in reason(encode(Image.new("LAB", (3, 4)), "TIFF"))


def test_a_tiff_on_its_side_is_turned_by_pillow(encode, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture, "TIFF", exif=exif)
    assert_pixels(data, np.rot90(picture, -1))


def test_the_extension_does_not_matter_the_bytes_do(encode, picture):
    # ImageNet holds a PNG named .JPEG.
    assert_pixels(encode(picture, "PNG"), picture)


# Other formats: what is damaged


def test_what_is_no_image_is_unreadable():
    assert reason(b"") == "the file is empty"
    assert reason(b"hello world") == "starts with b'hello wo', which is no known image format"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_a_cut_file_is_unreadable(encode, picture, kind):
    data = encode(picture, kind)
    for size in [12, len(data) // 4, len(data) // 2, len(data) * 3 // 4]:
        assert reason(data[:size])


def test_a_png_with_a_wrong_checksum_is_unreadable(encode, picture):
    data = bytearray(encode(picture, "PNG"))
    data[data.index(b"IDAT") + 30] ^= 0xFF
    assert "damaged" in reason(bytes(data))


def test_a_damaged_header_has_the_same_reason_every_time():
    data = b"\x89PNG\r\n\x1a\n"  # Pillow's own message would hold the address of an object
    assert reason(data) == f"starts with {data!r}, but its header is damaged"


def test_a_png_of_too_many_pixels_is_refused_by_its_header():
    for side in [13_378, 60_000]:
        assert "more pixels than the 178,956,970" in reason(png(side, side, 8, 2, b""))


def test_a_png_without_pixels_is_unreadable():
    reason(png(0, 5, 8, 2, b""))


# Manners


def test_warnings_of_pillow_do_not_leak(encode, picture, monkeypatch):
    data = encode(picture, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture.shape[0] * picture.shape[1] - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    assert_pixels(data, picture)  # any warning is an error here


def test_threads_leave_the_filters_of_warnings_as_they_were(encode, picture, monkeypatch):
    data = encode(picture, "PNG")
    before = list(warnings.filters)
    swift_open = Image.open

    def slow_open(*args, **options):
        time.sleep(0.05)
        return swift_open(*args, **options)

    monkeypatch.setattr(Image, "open", slow_open)
    threads = [threading.Thread(target=decode, args=(data,)) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # the second begins while the first is opening, and ends after it
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # this process has threads
def test_a_fork_during_a_decode_leaves_the_child_able_to_decode(encode, picture):
    data = encode(picture, "PNG")
    begun = threading.Event()

    def hold_the_lock():
        with decoding._filters:
            begun.set()
            time.sleep(0.1)

    thread = threading.Thread(target=hold_the_lock)
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a child that waits for ever is killed, and the test fails
        os._exit(0 if decode(data).shape == picture.shape else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


def test_unreadable_is_a_value_error_and_not_one_of_ours():
    from kdcache.errors import KdcacheError

    assert issubclass(Unreadable, ValueError)
    assert not issubclass(Unreadable, KdcacheError)
