"""What a place holds: its manifest, and those of what it held before.

Format: FORMAT.md, "A published place".
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from kdcache.errors import CacheCorrupt, CacheNotFound, CacheUnfinished
from kdcache.progress import Progress
from kdcache.share.place import Place, WritablePlace
from kdcache.store import (
    COPY,
    MANIFEST,
    Copy,
    FileDigest,
    Manifest,
    digest_of,
    kept_manifest,
)

PUSHING = "pushing.json"
"""Who is filling the place; there only while a push is under way."""

_PINNED = re.compile(r"(.+)@([0-9a-f]{64})")
_KEPT = re.compile(r"manifests/([0-9a-f]{64})\.json")


class Published(NamedTuple):
    """A cache at a place."""

    manifest: Manifest
    identity: str
    data: bytes
    """The manifest as it is there."""


def split_identity(url: str) -> tuple[str, str | None]:
    """`URL@IDENTITY` as its two parts; a URL alone means what is there now."""
    match = _PINNED.fullmatch(url)
    return (match[1], match[2]) if match else (url, None)


def find_published(place: Place, identity: str | None = None) -> Published:
    """The cache at a place, or the one of this identity that it held before.

    Raises:
        CacheNotFound: there is none.
        CacheUnfinished: it is being pushed.
        CacheCorrupt: what is there is no manifest, or not that of the identity.
    """
    found = current(place)
    if found is None:
        raise _why_none(place)
    if identity is None or identity == found.identity:
        return found
    data = place.read(kept_manifest(identity))
    if data is None:
        raise CacheNotFound(
            f"`{place.url}` holds the cache `{found.identity}`, and has not held `{identity}`",
            hint=f"see what it has held: kdcache info {place.url} --history",
        )
    if digest_of(data).sha256 != identity:
        raise CacheCorrupt(
            f"`{place.url}/{kept_manifest(identity)}` is not the manifest that it is named after",
            hint="ask who has the cache to push it again",
        )
    return Published(_parse(place, data), identity, data)


def current(place: Place) -> Published | None:
    """The cache at a place, if there is one."""
    data = place.read(MANIFEST)
    if data is None:
        return None
    return Published(_parse(place, data), digest_of(data).sha256, data)


def load_remote_copy(place: Place) -> Copy | None:
    """Which part of its cache a place holds; None for all of it."""
    data = place.read(COPY)
    return None if data is None else Copy.from_bytes(data)


def pusher(place: Place) -> str | None:
    """The identity of the cache that is being pushed to a place."""
    data = place.read(PUSHING)
    return None if data is None else json.loads(data)["identity"]


def lineage(place: Place) -> dict[str, Manifest]:
    """The caches that a place holds or has held and still keeps, by identity: the present first,
    then those that it has grown from, then others, which can be found where files can be listed."""
    found = find_published(place)
    known = {found.identity: found.manifest}
    parent = found.manifest.parent
    while parent is not None:
        known[parent] = find_published(place, parent).manifest
        parent = known[parent].parent
    names = sorted(place.sizes()) if isinstance(place, WritablePlace) else []
    for match in filter(None, map(_KEPT.fullmatch, names)):
        if match[1] not in known:
            known[match[1]] = find_published(place, match[1]).manifest
    return known


def superseded(digest: FileDigest) -> str:
    """Where a place keeps a file that a later cache has another one for."""
    return f"superseded/{digest.sha256}"


def fetch_promised(
    place: Place, name: str, to: Path, digest: FileDigest, now: Manifest, progress: Progress
) -> None:
    """Bring a file that some manifest of the place promises, wherever it is kept by now.

    Args:
        now: the manifest that the place has at present.
    """
    if now.files.get(name) not in (None, digest):
        place.fetch(superseded(digest), to, digest, progress)
        return
    try:
        place.fetch(name, to, digest, progress)
    except CacheCorrupt as trouble:  # a push that is under way may have moved it
        try:
            place.fetch(superseded(digest), to, digest, progress)
        except CacheCorrupt:
            raise trouble from None


def _parse(place: Place, data: bytes) -> Manifest:
    try:
        return Manifest.from_bytes(data)
    except CacheCorrupt as error:
        raise CacheCorrupt(
            f"what is at `{place.url}/{MANIFEST}` is no manifest of a cache",
            hint="give the address of the folder that holds manifest.json",
        ) from error


def _why_none(place: Place) -> CacheNotFound | CacheUnfinished:
    if (identity := pusher(place)) is not None:
        return CacheUnfinished(
            f"the cache `{identity}` is being pushed to `{place.url}`, and not whole yet",
            hint="wait for the push to end; if it has died, the same push goes on",
        )
    return CacheNotFound(
        f"there is no cache at `{place.url}`",
        hint="give the address of the folder that holds manifest.json",
    )
