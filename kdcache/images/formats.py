"""Image formats: by which file names images are found, and by which first bytes they are known."""

from os.path import splitext

EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
JPEG_START = b"\xff\xd8\xff"

_STARTS = (
    JPEG_START,
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",  # TIFF, and BigTIFF below, in either byte order
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    *(b"P%d" % kind for kind in range(1, 7)),  # PNM
)
_WEBP_BYTES = 12  # RIFF, four bytes of length, WEBP


def has_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image; upper and lower case are the same."""
    return splitext(name)[1].lower() in EXTENSIONS


def why_no_image(data: bytes) -> str | None:
    """Why these bytes are plainly no image, or None where they start as an image does."""
    if not data:
        return "the file is empty"
    is_webp = len(data) >= _WEBP_BYTES and data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if is_webp or data.startswith(_STARTS):
        return None
    return f"starts with {data[:8]!r}, which is no known image format"
