"""How the Hugging Face Hub is spoken to, and our words for what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import kdcache
from kdcache.errors import CacheNotFound, ConfigError, PlaceError


class Outrun(Exception):
    """The branch is not at the commit any more that was to be built on."""


def hub_api() -> HfApi:
    """The Hub, under our name."""
    return HfApi(library_name="kdcache", library_version=kdcache.__version__)


def require_token(url: str) -> None:
    """Refuse to begin what cannot end.

    Raises:
        ConfigError: nobody is logged in.
    """
    if get_token() is None:
        raise ConfigError(
            f"there is no token of the Hugging Face Hub, so nothing can be put at `{url}`",
            hint="hf auth login, or set HF_TOKEN to a token with write access",
        )


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Say in our words what the Hub or the way there refuses.

    Raises:
        CacheNotFound: there is no such repository or revision, or not for this token.
        PlaceError: the Hub cannot be reached, or refuses.
        Outrun: a commit was to be built on one that is not the newest any more.
    """
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled) as error:
        raise _worded(url, error) from error
    except (LocalEntryNotFoundError, RuntimeError, ValueError) as error:
        # How the library words a download or an upload that came to nothing.
        raise _worded(url, error.__cause__ or error) from error


def _worded(url: str, error: BaseException) -> Exception:
    if isinstance(error, OfflineModeIsEnabled):
        return PlaceError(
            f"`HF_HUB_OFFLINE` forbids to ask the Hub for `{url}`",
            hint="unset HF_HUB_OFFLINE, or use what is on this disk already",
        )
    if isinstance(error, GatedRepoError):
        return PlaceError(
            f"`{url}` is gated: its owners decide who may read it",
            hint="ask for access on its page, then hf auth login or set HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        return CacheNotFound(
            f"`{url}` has no such revision",
            hint="leave @REVISION out, or name a tag: the first 12 digits of an identity",
        )
    if isinstance(error, RepositoryNotFoundError):
        return CacheNotFound(
            f"there is no `{url}`, or the token in use may not see it",
            hint="see that the name is right; for a private one: hf auth login, or set HF_TOKEN",
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 412:
        return Outrun()
    if status in (401, 403):
        return PlaceError(
            f"the Hub refuses for `{url}`: {_first_line(error)}",
            hint="hf auth login with a token that may do this, or set HF_TOKEN",
        )
    return PlaceError(
        f"the Hub failed for `{url}`: {_first_line(error)}",
        hint="run the same command again: what has arrived is not sent again",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
