"""Downloads: one file of weights from its addresses into the cache folder, whole or not at all.

What has arrived lies in `NAME.part`, and beside it, in `NAME.part.json`, which version of the file
it is; the rest is asked for by Range and If-Range, so that bytes of two versions never mix. The
name without `.part` appears by a rename, after length and digest have been found right.
Source: RFC 9110, sections 13.1.5 (If-Range), 14 (range requests) and 10.2.3 (Retry-After).
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from kdcache.errors import TeacherError
from kdcache.files import cache_folder, canonical_json, in_turn, sync_folder, write_atomic
from kdcache.progress import Bar, silent_bar

_TRIES = 4
_BACKOFF_S = 0.5
_LONGEST_RETRY_AFTER_S = 60  # a server may ask for hours, but a mirror may answer at once
_TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces
_PIECE_BYTES = 1 << 18
_BUSY = frozenset({429, *range(500, 600)})
_OFFLINE = ("KDCACHE_OFFLINE", "HF_HUB_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its own variable
_COMPRESSED = ("gzip", "x-gzip", "deflate", "compress", "br", "zstd")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True)
class Digest:
    """What a file's bytes must hash to, as far as it was published.

    The eight digits that authors like to publish tell a broken file from a whole one, but are no
    protection against someone who wants to deceive.
    """

    kind: Literal["sha256", "md5"]
    digits: str
    """All of the digest in lower-case hexadecimal, or at least its first eight digits."""

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[0-9a-f]{8,64}", self.digits), f"`{self.digits}` is no digest"

    def __str__(self) -> str:
        return f"{self.kind} {self.digits}"

    def of(self, path: Path) -> str:
        """As many digits of the file's own digest as are known of the right one."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, self.kind).hexdigest()[: len(self.digits)]


def fetch(
    urls: Sequence[str],
    *,
    digest: Digest | None,
    bar: Bar = silent_bar,
) -> Path:
    """The file of weights in the cache folder; downloaded first unless it is there already.

    The addresses are tried in order, after `KDCACHE_MIRROR` if that is set: a server that offers
    the folder `weights/` of another cache folder.

    Args:
        urls: of the same file; the first is the original and names the file, the others mirrors.
        digest: checked once, when the file has arrived; None where nobody has published it.
        bar: shows bytes, once for every answer of a server that brings some.

    Raises:
        TeacherError: no address gave the right bytes, or none may be asked: `KDCACHE_OFFLINE=1` and
            `HF_HUB_OFFLINE=1`, which `--offline` sets, forbid it.
    """
    path = cache_folder() / "weights" / _place(urls[0], digest)
    if path.is_file():
        return path
    _check_online(path, urls[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(path.parent):
        if not path.is_file():  # else another process has brought it while this one waited
            _download(urls, path, digest, bar)
    return path


class _Failed(Exception):
    """One address cannot give the file; says why."""


class _WrongBytes(_Failed):
    """What has arrived is another file."""


@dataclass(frozen=True)
class _Version:
    """Which file on which server a partial file is the beginning of."""

    url: str
    validator: str
    """A strong ETag or a date, "" where the server gives neither."""
    num_bytes: int | None


def _place(url: str, digest: Digest | None) -> str:
    """Where the file lies under `weights/`: other addresses and digests have other folders."""
    known = f"{digest.kind}:{digest.digits}" if digest else ""
    key = hashlib.sha256(f"{url}\n{known}".encode()).hexdigest()[:12]
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    return f"{key}/{re.sub(r'[^A-Za-z0-9_.+-]', '_', name).lstrip('.') or 'weights'}"


def _check_online(path: Path, url: str) -> None:
    told = [name for name in _OFFLINE if os.environ.get(name, "").upper() in _TRUE]
    if told:
        raise TeacherError(
            f"the weights `{path}` are not there, and `{told[0]}` (`--offline`) forbids to "
            f"download them from `{url}`",
            hint="give the file: `--weights FILE`, or run this once with a network",
        )


def _sources(urls: Sequence[str], path: Path) -> list[str]:
    mirror = os.environ.get("KDCACHE_MIRROR")
    place = quote(f"{path.parent.name}/{path.name}")
    return [*([f"{mirror.rstrip('/')}/{place}"] if mirror else []), *urls]


def _download(urls: Sequence[str], path: Path, digest: Digest | None, bar: Bar) -> None:
    part = path.with_name(f"{path.name}.part")
    failures: list[tuple[str, _Failed]] = []
    with _session() as session:
        for url in _sources(urls, path):
            try:
                _bring(session, url, part, bar)
                _check(part, digest)
            except _Failed as failure:
                failures.append((url, failure))
            else:
                os.replace(part, path)
                _beside(part).unlink()
                sync_folder(path.parent)
                return
    tried = "; ".join(f"`{url}`: {failure}" for url, failure in failures)
    if any(isinstance(failure, _WrongBytes) for _, failure in failures):
        hint = "try again; if you trust a file that you have, give it: `--weights FILE`"
    else:
        hint = f"get `{urls[0]}` in another way and give it: `--weights FILE`"
    raise TeacherError(f"the weights `{path.name}` could not be downloaded: {tried}", hint=hint)


def _session() -> requests.Session:
    """Connections that try again where it can help; 403 and 404 are final."""
    retry = Retry(
        total=_TRIES,
        backoff_factor=_BACKOFF_S,
        status_forcelist=_BUSY,
        raise_on_status=False,
        retry_after_max=_LONGEST_RETRY_AFTER_S,
    )
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges and lengths are those of the file
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _bring(session: requests.Session, url: str, part: Path, bar: Bar) -> None:
    """Fill the partial file; as long as each answer brings it further, it goes on."""
    furthest = tries = 0
    while broken := _receive(session, url, part, bar):
        size = _size(part)
        tries = 0 if size > furthest else tries + 1
        furthest = max(furthest, size)
        if tries == _TRIES:
            raise _Failed(f"broke off after {furthest} bytes, again and again: {broken}")
        time.sleep(_BACKOFF_S * 2**tries)


def _receive(session: requests.Session, url: str, part: Path, bar: Bar) -> str:
    """Add to the partial file what it lacks; why it is not whole yet, "" when it is."""
    begun, offset = _begun(part, url)
    if begun and offset == begun.num_bytes:
        return ""
    headers = {"Range": f"bytes={offset}-", "If-Range": begun.validator} if begun else {}
    try:
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if begun and response.status_code in (206, 416):
                if not _continues(response, begun, offset):
                    _drop(part)
                    return "the file on the server has changed"
                version = begun
            else:
                version, offset = _version(url, response), 0
            _save(response, part, version, offset, bar)
    except requests.RequestException as error:
        raise _Failed(_reason(error)) from error
    except HTTPError as error:  # while the bytes came in: those before are kept
        return _reason(error)
    is_whole = version.num_bytes in (None, _size(part))  # a server may send less than asked for
    return "" if is_whole else "the server sent a part only"


def _begun(part: Path, url: str) -> tuple[_Version | None, int]:
    """The version that can be gone on with, and the bytes there are of it."""
    size = _size(part)
    if not size or not _beside(part).exists():
        return None, 0
    begun = _Version(**json.loads(_beside(part).read_bytes()))
    if begun.url != url or not begun.validator or size > (begun.num_bytes or 0):
        return None, 0
    return begun, size


def _version(url: str, response: requests.Response) -> _Version:
    """What a server begins to send, if that can be a whole file of weights."""
    headers = response.headers
    kind = headers.get("Content-Type", "").lower()
    encoding = headers.get("Content-Encoding", "").lower()
    length = headers.get("Content-Length", "")
    is_chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
    if response.status_code != 200:
        raise _Failed(f"the server answered {response.status_code} {response.reason}".rstrip())
    if kind.startswith("text/html"):
        raise _Failed("the server sent a web page instead of a file")
    if encoding in _COMPRESSED:
        raise _Failed(f"the server sent the file compressed by `{encoding}`")
    # A connection that just ends says nothing about the file's end; the last chunk does.
    if not is_chunked and not length.isdecimal():
        raise _Failed("the server does not say how long the file is")
    return _Version(url, _validator(response), None if is_chunked else int(length))


def _continues(response: requests.Response, begun: _Version, offset: int) -> bool:
    """Whether an answer to a Range request is the rest of the file that was begun."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (
        match is not None
        and (int(match[1]), int(match[2])) == (offset, begun.num_bytes)
        and _validator(response) in ("", begun.validator)  # not all servers repeat it
    )


def _validator(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")
    # If-Range takes no weak ETag: it may be the same for files that differ in some bytes.
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _save(
    response: requests.Response, part: Path, version: _Version, offset: int, bar: Bar
) -> None:
    """Write an answer into the partial file from `offset` on; it is on the disk at the end."""
    title = part.name.removesuffix(".part")
    with (
        part.open("ab" if offset else "wb") as file,
        bar(title, total=version.num_bytes or 0, unit="B", done=offset) as progress,
    ):
        if not offset:  # the old bytes are gone by now, so they never go with the new version
            write_atomic(_beside(part), canonical_json(asdict(version)))
        for piece in response.raw.stream(_PIECE_BYTES, decode_content=False):
            file.write(piece)
            progress(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _check(part: Path, digest: Digest | None) -> None:
    found = digest.of(part) if digest else ""
    if digest and found != digest.digits:
        size = _size(part)
        _drop(part)
        raise _WrongBytes(
            f"the {digest.kind} of the {size} bytes received is `{found}`, expected "
            f"`{digest.digits}`; they were deleted"
        )


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: Exception) -> str:
    """The innermost cause that the HTTP libraries give, without their wrapping."""
    inner = error.args[0] if error.args else type(error).__name__
    return f"{getattr(inner, 'reason', None) or inner}"
