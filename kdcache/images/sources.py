"""Sources: which kind of image set a folder, a list, a tar file or a pattern of tar files is."""

import glob
import os
import re
from collections import Counter
from pathlib import Path

from kdcache.errors import DataError
from kdcache.images.folder import build_folder_set, list_folder
from kdcache.images.formats import EXTENSIONS, has_image_name
from kdcache.images.image_set import ImageSet
from kdcache.images.shards import Shards, is_remote
from kdcache.images.table import open_table
from kdcache.images.tar import open_tars

_UNPACKERS = {
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.bz2": "bunzip2",
    ".tar.xz": "unxz",
    ".tar.zst": "unzstd",
}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WHAT_IS_TAKEN = "give a folder, a .csv or .tsv list, a .tar file, or a pattern such as `a-*.tar`"
_NUM_NAMED = 3


def open_images(source: str | Path) -> ImageSet:
    """The images of a folder, of a .csv or .tsv list, or of tar files.

    Args:
        source: a folder in ImageFolder layout, a list, a `.tar`, a folder of `.tar` files, or a
            pattern such as `train-{000..003}.tar` or `train-*.tar`; of tar files also the URL.

    Raises:
        DataError: nothing is there, it holds no images, or it is damaged.
        PlaceError: a bucket cannot be asked.
    """
    text = os.fspath(source)
    if is_remote(text):
        return open_tars(text, _expand_url(text))
    path = Path(text)
    _refuse_compressed(path)
    if path.is_dir():
        return _open_folder(text)
    if path.is_file():
        return _open_file(text)
    if any(letter in text for letter in "*?[{"):
        return open_tars(text, [str(shard.absolute()) for shard in _expand(text)])
    raise DataError(f"there is no `{text}`", hint=_WHAT_IS_TAKEN)


def _open_folder(source: str) -> ImageSet:
    listing = list_folder(Path(source))
    if listing.images or listing.dangling:
        return build_folder_set(source, listing)
    shards = sorted(Path(source).glob("[!.]*.tar"))
    if shards:
        return open_tars(source, [str(shard.absolute()) for shard in shards])
    looked = " ".join(sorted(EXTENSIONS))
    message = f"no images in `{source}` (looked for {looked}); found {_count(listing.others)}"
    raise DataError(message, hint=_WHAT_IS_TAKEN)


def _open_file(source: str) -> ImageSet:
    path = Path(source)
    extension = path.suffix.lower()
    if extension in (".csv", ".tsv"):
        return open_table(source)
    if extension == ".tar":
        return open_tars(source, [str(path.absolute())])
    if has_image_name(path.name):
        message = f"`{source}` is one image; a set of images was expected"
        raise DataError(message, hint=f"give its folder, `{path.parent}`")
    message = f"`{source}` is neither a folder, nor a .csv or .tsv list, nor a .tar file"
    raise DataError(message, hint=_WHAT_IS_TAKEN)


def _expand(pattern: str) -> list[Path]:
    """The tar files that a pattern with `{000..003}`, `*`, `?` or `[...]` stands for."""
    names = _expand_ranges(pattern)
    found = {name: sorted(glob.glob(name)) for name in names}
    missing = [name for name, matches in found.items() if not matches]
    if missing:
        named = ", ".join(f"`{name}`" for name in missing[:_NUM_NAMED])
        message = f"{len(missing):,} of {len(names):,} of `{pattern}` are not there: {named}"
        raise DataError(message, hint=_WHAT_IS_TAKEN)
    shards = [Path(name) for name in sorted({one for matches in found.values() for one in matches})]
    for shard in shards:
        _refuse_compressed(shard)
        if shard.suffix.lower() != ".tar":
            message = f"`{pattern}` also stands for `{shard}`; patterns are for .tar files"
            raise DataError(message, hint="narrow the pattern, e.g. to `*.tar`")
    return shards


def _expand_url(pattern: str) -> list[str]:
    """The URLs of tar files that a folder's URL, or one with `{000..003}`, `*`, `?` or `[...]`,
    stands for. Those of a range are not asked for here: they are missed when they are read."""
    _refuse_compressed(Path(pattern))
    shards = Shards()
    found: set[str] = set()
    for name in _expand_ranges(pattern):
        is_pattern = any(letter in name for letter in "*?[")
        if name.endswith(".tar") and not is_pattern:
            found.add(name)
            continue
        matches = shards.find(name if is_pattern else name.rstrip("/") + "/")
        if not matches:
            raise DataError(f"there are no tar files at `{name}`", hint=_WHAT_IS_TAKEN)
        found |= set(matches)
    return sorted(found)


def _expand_ranges(pattern: str) -> list[str]:
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    head, tail = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        message = f"the range `{found[0]}` of `{pattern}` is empty"
        raise DataError(message, hint=f"write it as `{{{last}..{first}}}`")
    middles = [str(number).zfill(len(first)) for number in numbers]
    return [head + middle + rest for middle in middles for rest in _expand_ranges(tail)]


def _refuse_compressed(path: Path) -> None:
    for ending, unpacker in _UNPACKERS.items():
        if path.name.lower().endswith(ending):
            message = f"`{path}` is compressed, so its images cannot be read in place"
            raise DataError(message, hint=f"make a plain .tar of it: `{unpacker} {path}`")


def _count(others: Counter[str]) -> str:
    kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:_NUM_NAMED]
    shown = ", ".join(f"{count:,} {extension}" for extension, count in kinds)
    return f"{others.total():,} other files ({shown})" if others else "no files at all"
