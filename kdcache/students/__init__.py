"""Students: small backbones that learn, and the files they are kept in."""

from kdcache.students.student import build_student, load_student, save_student

__all__ = ["build_student", "load_student", "save_student"]
