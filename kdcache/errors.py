"""What can go wrong, as a tree sorted by what the user does next.

KdcacheError
├── ConfigError        a recipe, a setting or an option is wrong
├── DataError          images are missing, changed or not images
├── TeacherError       a teacher is unknown, or its weights do not fit
├── CacheError         a cache cannot be used
│   ├── CacheNotFound      nothing is there (also a FileNotFoundError)
│   ├── CacheUnfinished    an extraction has not been completed
│   ├── CacheMismatch      the cache is whole, but not what was asked for
│   └── CacheCorrupt       bytes are not those that the manifest promises
├── PlaceError         a place that caches are shared at cannot be reached, read or written
├── TrainingError      a run cannot go on, or not be resumed
├── WorkerKilled       a process that renders views is gone
└── MissingExtra       an optional dependency is not installed
"""


class KdcacheError(Exception):
    """An error that the user can mend: what was found and expected, and in `hint` what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (DataLoader workers); the default would drop the hint.
        return (_rebuild, (type(self), str(self), self.hint))


def _rebuild(cls: type[KdcacheError], message: str, hint: str) -> KdcacheError:
    return cls(message, hint=hint)


class ConfigError(KdcacheError):
    """A recipe, a setting or an option is wrong."""


class DataError(KdcacheError):
    """Images are missing, changed or not images."""


class TeacherError(KdcacheError):
    """A teacher is unknown, or its weights do not fit."""


class CacheError(KdcacheError):
    """A cache cannot be used."""


class CacheNotFound(CacheError, FileNotFoundError):
    """There is no cache at this place."""


class CacheUnfinished(CacheError):
    """An extraction was begun here and has not been completed."""


class CacheMismatch(CacheError):
    """The cache is whole, but not what was asked for."""


class CacheCorrupt(CacheError):
    """Bytes are not those that the manifest promises."""


class PlaceError(KdcacheError):
    """A place that caches are shared at cannot be reached, read or written."""


class TrainingError(KdcacheError):
    """A run cannot go on, or cannot be resumed."""


class WorkerKilled(KdcacheError):
    """A process that renders views is gone."""


class MissingExtra(KdcacheError):
    """An optional dependency is not installed."""
