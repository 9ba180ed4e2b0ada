"""Decoding: encoded bytes to RGB pixels, the same bits on every machine.

JPEGs are decoded by simplejpeg, by OpenCV where that is not installed, by Pillow where neither is.
All carry libjpeg-turbo and give the same bits as long as they are asked for the same: the accurate
integer DCT, smooth chroma upsampling, the full size. (torchvision.io does too, but is going away.)
Colour profiles and EXIF orientation are ignored, as torchvision's ImageFolder ignores them; TIFFs
apart, which Pillow turns upright itself.
Source: measured over 500 ImageNet JPEGs: equal bits from libjpeg-turbo 1.5 to 3.2, on any SIMD.

What is damaged is refused, never rendered in part. A JPEG without an end mark is refused whatever
the library. Where a JPEG that has one is wrong inside, simplejpeg refuses whatever libjpeg warns
of; OpenCV and Pillow do not pass those warnings on.
"""

import io
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from kdcache.images.formats import JPEG_START, why_no_image
from kdcache.shapes import UInt8

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused before they are decoded; Pillow's own limit."""

JpegDecoder = Callable[[bytes], Any]
"""Encoded bytes in, an array [H, W, 3] of RGB out; raises where the bytes are damaged."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = frozenset(("1", "CMYK", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"))
_MODES_16_BIT = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset((0x00, 0x01, *range(0xD0, 0xD8)))  # stuffing, TEM, RSTn: no length
_COMMON_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # Huffman-coded: baseline, extended, progressive
_COMMON_LUMA = frozenset((0x11, 0x12, 0x21, 0x22, 0x41))  # 4:4:4, 4:4:0, 4:2:2, 4:2:0, 4:1:1
_END_MARK = b"\xff\xd9"

# Pillow warns while it reads headers, and Python's warning filters belong to the whole process.
# The lock keeps threads from leaving each other's filters behind, and a fork from taking it along.
_filters = threading.Lock()
os.register_at_fork(
    before=_filters.acquire, after_in_parent=_filters.release, after_in_child=_filters.release
)


class Unreadable(ValueError):
    """These bytes cannot be made into pixels; the message is the reason."""


def decode(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an encoded image as RGB, C-contiguous; of several frames the first.

    Grey becomes RGB, alpha is dropped, 16-bit grey keeps its upper 8 bits.

    Raises:
        Unreadable: the bytes are no image, damaged, of an unknown kind, or too many pixels.
    """
    reason = why_no_image(data)
    if reason is not None:
        raise Unreadable(reason)
    if data.startswith(JPEG_START):
        return _decode_jpeg(data)
    return _decode_with_pillow(data)


def decoder_description() -> dict[str, str]:
    """Which library, in which version, decodes JPEGs and which the other formats."""
    return {"jpeg": _jpeg_library, "other": f"pillow {PIL.__version__}"}


@dataclass(frozen=True)
class _Frame:
    """What the frame header of a JPEG says."""

    marker: int
    bits: int
    height: int
    width: int
    samplings: tuple[int, ...]
    """One byte a component: horizontal factor in the upper half, vertical in the lower."""
    end: int
    """Where the header ends in the file."""

    @property
    def is_common(self) -> bool:
        """Whether all three libraries take it: not CMYK, nor 12 bits, nor unusual sampling."""
        luma, *chroma = self.samplings
        colour = chroma == [0x11, 0x11] and luma in _COMMON_LUMA
        return self.marker in _COMMON_FRAMES and self.bits == 8 and (colour or not chroma)


def _decode_jpeg(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    frame = _read_frame(data)
    _check_size(frame.height, frame.width)
    if data.rfind(_END_MARK, frame.end) < 0:
        raise Unreadable("the JPEG is cut off: it has no end mark")
    if not frame.is_common:
        return _decode_with_pillow(data)
    try:
        pixels = _decode_common_jpeg(data)
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # each library has errors of its own
        raise Unreadable(f"the image is damaged: {error}") from error
    return np.ascontiguousarray(pixels)


def _read_frame(data: bytes) -> _Frame:
    at = len(JPEG_START) - 1
    while (at := data.find(b"\xff", at)) >= 0 and at + 10 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # any number of them may fill the space before a marker
            at += 1
        elif marker in _BARE_MARKERS:
            at += 2
        elif marker in _FRAME_MARKERS:
            bits, count = data[at + 4], data[at + 9]
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            end = at + 10 + 3 * count
            samplings = tuple(data[at + 11 : end : 3])
            if not samplings or len(samplings) != count:
                break
            return _Frame(marker, bits, height, width, samplings, end)
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise Unreadable("the JPEG is cut off: it has no frame header")


def _decode_with_pillow(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with _open_with_pillow(data) as image:
            _check_size(image.height, image.width)
            image.load()
            return _to_rgb(image)
    except (MemoryError, Unreadable):
        raise
    except Image.DecompressionBombError:  # what its header says is beyond Pillow's limit, too
        raise Unreadable(f"it has more pixels than the {MAX_PIXELS:,} that are taken") from None
    except UnidentifiedImageError:
        raise Unreadable(f"starts with {data[:8]!r}, but its header is damaged") from None
    except Exception as error:  # Pillow's readers raise whatever went wrong inside of them
        raise Unreadable(f"the image is damaged: {error}") from error


def _open_with_pillow(data: bytes) -> Image.Image:
    """An image of which only the header has been read."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=_FORMATS)


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode in _MODES_16_BIT:
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode not in _MODES:
        raise Unreadable(f"its pixels are of Pillow's mode `{image.mode}`, which has no 8-bit form")
    image.info.pop("transparency", None)  # alpha is dropped, also that of palettes
    return np.array(image.convert("RGB"))


def _check_size(height: int, width: int) -> None:
    if height * width == 0:
        raise Unreadable(f"it is {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise Unreadable(
            f"it has more pixels than the {MAX_PIXELS:,} that are taken: {width} x {height}"
        )


def _simplejpeg() -> tuple[str, JpegDecoder]:
    import simplejpeg

    # Strict, which is the default, makes an error of every warning of libjpeg.
    return f"simplejpeg {simplejpeg.__version__}", lambda data: simplejpeg.decode_jpeg(data, "RGB")


def _opencv() -> tuple[str, JpegDecoder]:
    import cv2

    def decode_one(data: bytes) -> Any:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        if pixels is None:
            raise ValueError("OpenCV cannot decode it")
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    return f"opencv {cv2.__version__}", decode_one


def _pillow() -> tuple[str, JpegDecoder]:
    return f"pillow {PIL.__version__}", _decode_with_pillow


JPEG_DECODERS: dict[str, Callable[[], tuple[str, JpegDecoder]]] = {
    "simplejpeg": _simplejpeg,
    "cv2": _opencv,
    "PIL": _pillow,
}
"""By module, the fastest first; the values import their library, and name it with its version."""

_jpeg_library, _decode_common_jpeg = next(
    build() for module, build in JPEG_DECODERS.items() if find_spec(module) is not None
)
