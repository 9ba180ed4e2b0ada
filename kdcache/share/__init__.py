"""Caches that are shared: pushed to a place, pulled from it whole or in part, read from afar."""

from kdcache.share.history import fetch_promised, find_published, lineage, split_identity
from kdcache.share.look import history_lines, look_at
from kdcache.share.place import CommitPlace, Place, WritablePlace, is_url, open_place
from kdcache.share.pull import Pulled, describe, pull_cache
from kdcache.share.push import Pushed, push_cache
from kdcache.share.tier import remote_cache

__all__ = [
    "CommitPlace",
    "Place",
    "Pulled",
    "Pushed",
    "WritablePlace",
    "describe",
    "fetch_promised",
    "find_published",
    "history_lines",
    "is_url",
    "lineage",
    "look_at",
    "open_place",
    "pull_cache",
    "push_cache",
    "remote_cache",
    "split_identity",
]
