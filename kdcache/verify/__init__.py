"""Verifying: whether a cache is what it promises, and mending it where it is not."""

from kdcache.verify.again import Means
from kdcache.verify.check import verify_cache
from kdcache.verify.fetch import Copy, copy_at
from kdcache.verify.finding import BROKEN_FILE, Finding, Verdict
from kdcache.verify.promises import files_to_check
from kdcache.verify.repair import Repair, repair_cache
from kdcache.verify.teacher import TOLERANCE, check_images, check_teacher

__all__ = [
    "BROKEN_FILE",
    "TOLERANCE",
    "Copy",
    "Finding",
    "Means",
    "Repair",
    "Verdict",
    "check_images",
    "check_teacher",
    "copy_at",
    "files_to_check",
    "repair_cache",
    "verify_cache",
]
