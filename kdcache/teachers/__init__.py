"""Teachers: frozen networks that look at views, and the checkpoints they come from."""

from kdcache.teachers.checkpoint import read_checkpoint
from kdcache.teachers.layout import Parts, split_checkpoint
from kdcache.teachers.load import load_teacher
from kdcache.teachers.teacher import Teacher

__all__ = ["Parts", "Teacher", "load_teacher", "read_checkpoint", "split_checkpoint"]
