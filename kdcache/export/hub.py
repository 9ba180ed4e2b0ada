"""An export on the Hugging Face Hub: one model repository, one commit, one tag.

The commit holds the forms that were exported and their card, takes away forms of an earlier student
that were not exported this time, and is made only on top of the commit that was looked at. What a
repository has held stays under its tag, the first twelve digits of the parameters' SHA-256.

*Source:* huggingface_hub 2.4.0, `HfApi.create_commit`; what timm reads of a repository:
`timm/models/_hub.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, parse_hf_uri
from huggingface_hub.errors import HfUriError, RemoteEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from kdcache.errors import ConfigError, PlaceError
from kdcache.export.formats import CONFIG, FILES, TAG
from kdcache.export.run import CARD, Exported
from kdcache.progress import Bar, Tell
from kdcache.share.card import is_unedited
from kdcache.share.hub_access import Outrun, explained, hub_api, require_token

_KIND = "model"
_TAG_DIGITS = 12


@dataclass(frozen=True)
class HubModel:
    """A model repository that is to hold a student; made by `open_hub_model`."""

    url: str
    repo: str
    """`OWNER/NAME`."""

    def publish(self, exported: Exported, *, public: bool, bar: Bar, tell: Tell) -> str:
        """Put an export there; the name by which timm loads exactly this student.

        A repository that is missing is created. What it holds already is not sent again.

        Args:
            public: whether a repository that is created is for everyone.
            tell: hears of a card that stays, for somebody has edited it.

        Raises:
            ConfigError: the repository holds a model that kdcache has not exported.
            PlaceError: the Hub cannot be reached, or refuses; or somebody else was faster.
        """
        disable_progress_bars()
        with explained(self.url):
            hub_api().create_repo(self.repo, repo_type=_KIND, private=not public, exist_ok=True)
            commit = hub_api().repo_info(self.repo, repo_type=_KIND).sha
            assert commit is not None
            there = hub_api().list_repo_files(self.repo, revision=commit, repo_type=_KIND)
        self._require_ours(commit)
        files = [name for form in exported.differences for name in FILES[form]]
        stale = {name for names in FILES.values() for name in names} - set(files)
        if self._may_replace_card(commit, tell):
            files.append(CARD)
        total = sum((exported.folder / name).stat().st_size for name in files)
        with bar("push", total=total, unit="B") as progress:
            made = self._commit(
                [CommitOperationAdd(name, exported.folder / name) for name in files]
                + [CommitOperationDelete(name) for name in sorted(stale.intersection(there))],
                exported.digest,
                commit,
            )
            progress(total)
        return self._tag(exported.digest, made)

    def _commit(
        self,
        operations: list[CommitOperationAdd | CommitOperationDelete],
        digest: str,
        parent: str,
    ) -> str:
        try:
            with explained(self.url):
                made = hub_api().create_commit(
                    self.repo,
                    operations,
                    commit_message=f"kdcache export {digest[:_TAG_DIGITS]}",
                    repo_type=_KIND,
                    parent_commit=parent,
                )
        except Outrun:
            raise PlaceError(
                f"somebody else has changed `{self.url}` while the export was sent",
                hint="run the same command again; what was sent is not sent again",
            ) from None
        return made.oid

    def _tag(self, digest: str, commit: str) -> str:
        tag = digest[:_TAG_DIGITS]
        with explained(self.url):
            hub_api().create_tag(
                self.repo, tag=tag, revision=commit, repo_type=_KIND, exist_ok=True
            )
        return f"hf-hub:{self.repo}@{tag}"

    def _require_ours(self, commit: str) -> None:
        data = self._read(CONFIG, commit)
        if data is not None and _tag_of(data) != TAG:
            raise ConfigError(
                f"`{self.url}` holds a model that kdcache has not exported",
                hint="give another name: --to-hub hf://OWNER/NAME",
            )

    def _may_replace_card(self, commit: str, tell: Tell) -> bool:
        data = self._read(CARD, commit)
        if data is None or is_unedited(data.decode("utf-8", "replace")):
            return True
        tell(f"the {CARD} of `{self.url}` is not one of kdcache's any more: it stays as it is")
        return False

    def _read(self, name: str, commit: str) -> bytes | None:
        with TemporaryDirectory(prefix="kdcache-") as folder, explained(self.url):
            try:
                path = hub_api().hf_hub_download(
                    self.repo, name, repo_type=_KIND, revision=commit, local_dir=folder
                )
            except RemoteEntryNotFoundError:
                return None
            return Path(path).read_bytes()


def open_hub_model(url: str) -> HubModel:
    """The repository that `hf://OWNER/NAME` names; nothing is asked of the Hub yet.

    Raises:
        ConfigError: the address names something else, or nobody is logged in.
    """
    hint = "--to-hub hf://OWNER/NAME"
    try:
        uri = parse_hf_uri(url)
    except HfUriError as error:
        raise ConfigError(f"`{url}` is no address on the Hub: {error}", hint=hint) from None
    if uri.type != _KIND or uri.path_in_repo or uri.revision is not None:
        raise ConfigError(f"`{url}` is no model repository: a student has one to itself", hint=hint)
    require_token(url)
    return HubModel(url, uri.id)


def _tag_of(config: bytes) -> object:
    """What `config.json` says of where its weights come from; None where it is none of timm's."""
    try:
        return json.loads(config)["pretrained_cfg"]["tag"]
    except (ValueError, KeyError, TypeError):
        return None
