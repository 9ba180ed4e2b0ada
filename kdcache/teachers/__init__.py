"""Teachers: frozen networks that look at views, and the checkpoints they come from."""

from kdcache.teachers.checkpoint import read_checkpoint
from kdcache.teachers.download import fetch
from kdcache.teachers.layout import Parts, split_checkpoint
from kdcache.teachers.load import load_teacher
from kdcache.teachers.own import own_teacher
from kdcache.teachers.registry import Entry, get_entry, registered_teachers
from kdcache.teachers.sketch import sketch_teacher
from kdcache.teachers.teacher import Teacher

__all__ = [
    "Entry",
    "Parts",
    "Teacher",
    "fetch",
    "get_entry",
    "load_teacher",
    "own_teacher",
    "read_checkpoint",
    "registered_teachers",
    "sketch_teacher",
    "split_checkpoint",
]
