"""Stores of objects: S3, GCS and Azure, and plain HTTP, opened through obstore.

obstore runs threads of its own: a store may not be used in a process that was forked after it was
opened (`storage.md` 3.1).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from kdcache.errors import PlaceError

RETRIES = 5
BACKOFF = timedelta(milliseconds=200)
SILENCE = timedelta(seconds=120)
"""How long a server may be silent; also how long one piece may take on its way out."""
_WHOLE_REQUEST = timedelta(hours=6)
_RETRY_FOR = timedelta(minutes=4)

_ENDPOINTS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
_NO_SUCH_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "Account must be specified")


def open_store(url: str) -> Any:
    """The store of the objects below `url`. The environment has credentials and endpoint."""
    plain = [url, *(os.environ.get(name, "") for name in _ENDPOINTS)]
    with explained(url):
        return from_url(
            url,
            client_options={
                "allow_http": any(address.startswith("http://") for address in plain),
                "connect_timeout": timedelta(seconds=10),
                "read_timeout": SILENCE,
                "timeout": _WHOLE_REQUEST,
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": _RETRY_FOR,
                "backoff": {
                    "init_backoff": BACKOFF,
                    "max_backoff": timedelta(seconds=15),
                    "base": 2,
                },
            },
        )


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Give the errors of obstore in words that say what to do."""
    try:
        yield
    except UnauthenticatedError as error:
        raise PlaceError(
            f"`{where}` asks for credentials: {_first_line(error)}", hint=_CREDENTIALS
        ) from error
    except PermissionDeniedError as error:
        raise PlaceError(
            f"`{where}` may not be used with these credentials, or with none: {_first_line(error)}",
            hint="see that they may read, list and write there; of others, ask who owns the place",
        ) from error
    except NotImplementedError as error:
        raise PlaceError(
            f"`{where}` cannot do this: {_first_line(error)}",
            hint="plain HTTP is for pulling; push to s3://, gs://, az://, hf:// or a folder",
        ) from error
    except BaseError as error:
        if any(word in str(error) for word in _NO_CREDENTIALS):
            raise PlaceError(
                f"there are no credentials for `{where}`: {_first_line(error)}", hint=_CREDENTIALS
            ) from error
        if any(word in str(error) for word in _NO_SUCH_BUCKET):
            raise _no_bucket(where) from error
        raise PlaceError(
            f"`{where}` does not answer as it should: {_first_line(error)}",
            hint="see that the address is right; then run the same command again: it goes on",
        ) from error
    except FileNotFoundError as error:
        if any(word in str(error) for word in _NO_SUCH_BUCKET):
            raise _no_bucket(where) from error
        raise


_CREDENTIALS = (
    "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or"
    " GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME and _KEY); for a public S3 bucket"
    " AWS_SKIP_SIGNATURE=true"
)


def require_bucket(error: FileNotFoundError) -> None:
    """Pass on that there is no bucket, which is not told from there being no object."""
    if any(word in str(error) for word in _NO_SUCH_BUCKET):
        raise error


def _no_bucket(where: str) -> PlaceError:
    return PlaceError(
        f"there is no bucket for `{where}`",
        hint="see that its name, AWS_ENDPOINT_URL and AWS_REGION are right, or make it first",
    )


def _first_line(error: Exception) -> str:
    """What happened, without the dump of the library's own state."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:300]
