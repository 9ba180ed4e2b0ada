"""The Hugging Face Hub as a place for a cache: one dataset repository, one commit, one tag.

Large files are sent first and belong to nobody; the commit that names them, the manifest and the
card is made in one step, and only on top of the commit that was looked at before. So a reader
sees the old cache or the new one, of two pushers one is told, and a push that was interrupted
sends nothing twice. What a repository has held stays: each cache has a tag, the first twelve
digits of its identity.

*Source:* huggingface_hub 2.4.0, `HfApi.preupload_lfs_files` and `HfApi.create_commit`; limits:
"Repository limitations and recommendations" in the Hub's documentation.
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, parse_hf_uri
from huggingface_hub.errors import HfUriError, RemoteEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from kdcache.errors import CacheCorrupt, CacheMismatch, ConfigError, PlaceError
from kdcache.files import sha256_of, sync_file, sync_folder
from kdcache.progress import Bar, Progress, Tell
from kdcache.share.card import is_unedited, make_card
from kdcache.share.hub_access import Outrun, explained, hub_api, require_token
from kdcache.store import Cache, FileDigest, Manifest
from kdcache.store.group import GROUP, make_group
from kdcache.store.layout import ARRAYS
from kdcache.store.manifest import MANIFEST, size_problems
from kdcache.store.publish import digest_of

CARD = "README.md"

_KIND = "dataset"
_TAG_DIGITS = 12
_BATCH_BYTES = 256 << 20
_BATCH_FILES = 256
_THREADS = 8
_MAX_FILES = 100_000
_MAX_FOLDER_ENTRIES = 10_000
_MAX_LARGE_FILES = 25_000  # of one commit


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


@dataclass(frozen=True)
class HubPlace:
    """A dataset repository that holds a cache, or is to hold one; made by `open_hub`."""

    url: str
    repo: str
    """`ORG/NAME`."""
    revision: str | None
    """A branch, a tag or a commit; None is the main branch."""

    @cached_property
    def commit(self) -> str:
        """The commit that the revision meant when it was first asked for: all is read from it.

        Raises:
            CacheNotFound: there is no such repository or revision, or not for this token.
            PlaceError: the Hub cannot be reached, or refuses.
        """
        with explained(self.url):
            sha = hub_api().repo_info(self.repo, repo_type=_KIND, revision=self.revision).sha
        assert sha is not None, "the Hub names the commit of a revision"
        return sha

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, None where there is none.

        Raises:
            CacheNotFound, PlaceError: as for `commit`.
        """
        with TemporaryDirectory(prefix="kdcache-") as folder:
            path = self._download(name, Path(folder))
            return None if path is None else path.read_bytes()

    def fetch(self, name: str, to: Path, digest: FileDigest, progress: Progress) -> None:
        """Bring a file to `to`, where it appears whole and right, or not at all.

        Args:
            progress: counts bytes; called once, when the file has arrived.

        Raises:
            CacheNotFound, PlaceError: as for `commit`.
            CacheCorrupt: the Hub has no such file, or other bytes than promised.
        """
        folder = to.with_name(f".{to.name}.hub")  # found again and removed after a kill
        folder.mkdir(parents=True, exist_ok=True)
        try:
            path = self._download(name, folder)
            if path is None:
                raise CacheCorrupt(
                    f"`{self.url}` promises `{name}` and does not hold it",
                    hint="tell whoever pushed it; the same push completes what is not whole",
                )
            if (found := sha256_of(path)) != digest.sha256:
                raise CacheCorrupt(
                    f"`{name}` of `{self.url}` has SHA-256 `{found}` instead of `{digest.sha256}`",
                    hint="run the same command again; if it stays so, tell whoever pushed it",
                )
            sync_file(path)
            os.replace(path, to)
            sync_folder(to.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        progress(digest.num_bytes)

    def push(
        self,
        cache: Cache,
        bar: Bar,
        *,
        data_licence: str | None = None,
        public: bool = False,
        tell: Tell = _note,
    ) -> str:
        """Publish a cache with its card in one commit; the address that names exactly this cache.

        A repository that is missing is created. What it holds already is not sent again, and a
        file is read and compared with the manifest before it is sent.

        Args:
            data_licence: of the images, for the card.
            public: whether a repository that is created is for everyone; paths, labels and
                thumbnails of images are part of a cache.
            tell: hears which of the Hub's recommended limits the cache exceeds.

        Raises:
            ConfigError: no token, or an address with a revision.
            CacheCorrupt: a file of the cache is not what its manifest promises.
            CacheMismatch: the repository holds another cache, or somebody else was faster.
            PlaceError: the Hub cannot be reached, or refuses.
        """
        self._require_writable()
        for text in hub_warnings(cache.manifest):
            tell(text)
        with explained(self.url):
            hub_api().create_repo(self.repo, repo_type=_KIND, private=not public, exist_ok=True)
        before = open_hub(self.url)
        if before._identity() == cache.identity:
            return self._tag(cache, before.commit)
        before._require_ancestor_of(cache)
        commit = before._commit_cache(cache, bar, data_licence, tell)
        return self._tag(cache, commit)

    def _download(self, name: str, folder: Path) -> Path | None:
        disable_progress_bars()  # the caller has a bar
        revision = self.commit
        with explained(self.url):
            try:
                path = hub_api().hf_hub_download(
                    self.repo, name, repo_type=_KIND, revision=revision, local_dir=folder
                )
            except RemoteEntryNotFoundError:
                return None
        return Path(path)

    def _require_writable(self) -> None:
        if self.revision is not None:
            raise ConfigError(
                f"`{self.url}` names one revision, and a push makes a new one",
                hint=f"push to hf://datasets/{self.repo}",
            )
        require_token(self.url)

    def _identity(self) -> str | None:
        """The identity of the cache that is here."""
        data = self.read(MANIFEST)
        return None if data is None else digest_of(data).sha256

    def _require_ancestor_of(self, cache: Cache) -> None:
        """Refuse to put a cache in the place of one that it does not contain."""
        data = self.read(MANIFEST)
        if data is None or _contains(cache.manifest, Manifest.from_bytes(data)):
            return
        raise CacheMismatch(
            f"`{self.url}` holds the cache `{digest_of(data).sha256}`, from which"
            f" `{cache.identity}` has not grown",
            hint="push to another name, or pull what is there and go on from it",
        )

    def _commit_cache(self, cache: Cache, bar: Bar, data_licence: str | None, tell: Tell) -> str:
        """Send what is missing on top of the commit that this place has been read from."""
        with explained(self.url):
            there = self._files()
        _refuse_gitignore(self, there)
        additions = _missing(cache, there)
        _refuse_too_many(cache, additions)
        card = self._card(cache, data_licence, tell)
        _upload(self, cache, additions, bar)
        operations = [*additions, *_own_files(cache)]
        if card is not None:
            operations.append(CommitOperationAdd(CARD, card.encode()))
        try:
            with explained(self.url):
                made = hub_api().create_commit(
                    self.repo,
                    operations,
                    commit_message=f"kdcache {cache.identity[:_TAG_DIGITS]}",
                    repo_type=_KIND,
                    parent_commit=self.commit,
                )
        except Outrun:
            return _settle_race(self, cache)
        return made.oid

    def _files(self) -> dict[str, RepoFile]:
        """What the repository holds, by path."""
        tree = hub_api().list_repo_tree(
            self.repo, recursive=True, revision=self.commit, repo_type=_KIND
        )
        return {file.path: file for file in tree if isinstance(file, RepoFile)}

    def _card(self, cache: Cache, data_licence: str | None, tell: Tell) -> str | None:
        """The card to put; None where somebody has edited the one that is there."""
        there = self.read(CARD)
        if there is not None and not is_unedited(there.decode("utf-8", "replace")):
            tell(f"the {CARD} of `{self.url}` is not one of kdcache's any more: it stays as it is")
            return None
        return make_card(cache, url=_pinned(self.repo, cache), data_licence=data_licence)

    def _tag(self, cache: Cache, commit: str) -> str:
        with explained(self.url):
            hub_api().create_tag(
                self.repo,
                tag=cache.identity[:_TAG_DIGITS],
                revision=commit,
                repo_type=_KIND,
                exist_ok=True,
            )
        return _pinned(self.repo, cache)


def open_hub(url: str) -> HubPlace:
    """The place that `hf://datasets/ORG/NAME[@REVISION]` names; nothing is asked of the Hub yet.

    Raises:
        ConfigError: the address names something else.
    """
    try:
        uri = parse_hf_uri(url)
    except HfUriError as error:
        raise ConfigError(
            f"`{url}` is no address on the Hub: {error}", hint="hf://datasets/ORG/NAME"
        ) from None
    if uri.type != _KIND or uri.path_in_repo:
        raise ConfigError(
            f"`{url}` is no dataset repository: a cache has one to itself",
            hint="hf://datasets/ORG/NAME, or hf://datasets/ORG/NAME@REVISION",
        )
    return HubPlace(url, uri.id, uri.revision)


def hub_warnings(manifest: Manifest) -> list[str]:
    """Which of the limits that the Hub recommends a cache exceeds, a sentence each."""
    entries: Counter[str] = Counter()
    seen: set[str] = set()
    for file in manifest.files:
        path = file
        while path and path not in seen:
            seen.add(path)
            path = path.rpartition("/")[0]
            entries[path] += 1
    found = []
    if len(manifest.files) > _MAX_FILES:
        found.append(
            f"the cache has {len(manifest.files):,} files, and the Hub recommends at most"
            f" {_MAX_FILES:,} in a repository"
        )
    found += [
        f"`{folder or '.'}` has {count:,} entries, and the Hub recommends at most"
        f" {_MAX_FOLDER_ENTRIES:,} in a folder"
        for folder, count in sorted(entries.items())
        if count > _MAX_FOLDER_ENTRIES
    ]
    return found


def _pinned(repo: str, cache: Cache) -> str:
    return f"hf://datasets/{repo}@{cache.identity[:_TAG_DIGITS]}"


def _contains(new: Manifest, old: Manifest) -> bool:
    """Whether all targets of `old` are in `new`, which was made by the same recipe."""
    targets = {
        name: digest for name, digest in old.files.items() if name.startswith(_SHARD_FOLDERS)
    }
    return old.recipe == new.recipe and targets.items() <= new.files.items()


_SHARD_FOLDERS = tuple(f"{array}/c/" for array in ARRAYS)


def _missing(cache: Cache, there: dict[str, RepoFile]) -> list[CommitOperationAdd]:
    """An addition for every promised file that the repository is not known to hold.

    The Hub says the SHA-256 of large files only; small ones are compared when they are committed.

    Raises:
        CacheCorrupt: a file is missing or has another size than promised.
    """
    for problem in size_problems(cache.path, cache.manifest.files):
        raise CacheCorrupt(
            f"`{cache.path / problem.file}` {problem.found}: only a whole cache can be pushed",
            hint=f"see all of it with `kdcache verify {cache.path}`",
        )
    return [
        CommitOperationAdd(name, cache.path / name)
        for name, promised in cache.manifest.files.items()
        if not (
            (file := there.get(name)) and file.lfs is not None
            and file.lfs.sha256 == promised.sha256
        )
    ]  # fmt: skip


def _own_files(cache: Cache) -> list[CommitOperationAdd]:
    """What a cache has besides the files that its manifest promises."""
    own = {MANIFEST: (cache.path / MANIFEST).read_bytes()}
    if digest_of(own[MANIFEST]).sha256 != cache.identity:
        raise CacheMismatch(
            f"`{cache.path}` is not the cache `{cache.identity}` any more",
            hint="run the same command again",
        )
    if GROUP not in cache.manifest.files:
        own[GROUP] = make_group(cache.path, cache.manifest.files)
    return [CommitOperationAdd(name, data) for name, data in own.items()]


def _upload(
    place: HubPlace, cache: Cache, additions: Sequence[CommitOperationAdd], bar: Bar
) -> None:
    """Send the large files; the Hub answers at once for those that it has by their SHA-256."""
    disable_progress_bars()
    total = sum(addition.upload_info.size for addition in additions)
    with bar("push", total=total, unit="B") as progress:
        for batch in _batches(additions):
            for addition in batch:
                _vouch(cache, addition)
            with explained(place.url):
                hub_api().preupload_lfs_files(
                    place.repo,
                    batch,
                    repo_type=_KIND,
                    revision="main",
                    num_threads=_THREADS,
                    free_memory=False,
                )
            progress(sum(addition.upload_info.size for addition in batch))


def _batches(additions: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    """In order, few and small enough that a batch is soon sent."""
    batch: list[CommitOperationAdd] = []
    for addition in additions:
        batch.append(addition)
        size = sum(other.upload_info.size for other in batch)
        if size >= _BATCH_BYTES or len(batch) == _BATCH_FILES:
            yield batch
            batch = []
    if batch:
        yield batch


def _vouch(cache: Cache, addition: CommitOperationAdd) -> None:
    """Read a file before it is sent: what is broken here must not reach others."""
    name = addition.path_in_repo
    promised = cache.manifest.files[name].sha256
    if (found := sha256_of(cache.path / name)) != promised:
        raise CacheCorrupt(
            f"`{cache.path / name}` has SHA-256 `{found}` instead of `{promised}`",
            hint=f"see all of it with `kdcache verify {cache.path}`",
        )
    addition.upload_info.sha256 = bytes.fromhex(found)


def _refuse_too_many(cache: Cache, additions: Sequence[CommitOperationAdd]) -> None:
    num_large = sum(not addition.path_in_repo.endswith(".json") for addition in additions)
    if num_large > _MAX_LARGE_FILES:
        raise PlaceError(
            f"{num_large:,} binary files of `{cache.path}` are not there yet, and the Hub takes"
            f" {_MAX_LARGE_FILES:,} in one commit",
            hint="push fewer views, or to a bucket: kdcache push CACHE s3://BUCKET/NAME",
        )


def _refuse_gitignore(place: HubPlace, there: dict[str, RepoFile]) -> None:
    if ".gitignore" in there:
        raise CacheMismatch(
            f"`{place.url}` has a `.gitignore`, which may keep files of the cache out",
            hint="delete it there, or push to another name",
        )


def _settle_race(place: HubPlace, cache: Cache) -> str:
    """The commit of another pusher, if it has brought this very cache.

    Raises:
        CacheMismatch: it has brought something else.
    """
    now = open_hub(place.url)
    identity = now._identity()
    if identity == cache.identity:
        return now.commit
    what = f"holds the cache `{identity}` now" if identity else "has changed"
    raise CacheMismatch(
        f"somebody else has changed `{place.url}` while `{cache.identity}` was pushed: it {what}",
        hint="run the same command again; what was sent is not sent again",
    )
