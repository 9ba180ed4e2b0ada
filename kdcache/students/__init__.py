"""Students: small backbones that learn, and the files they are kept in."""

from kdcache.students.papers import PAPER_STUDENTS
from kdcache.students.student import STUDENT_FILE, build_student, load_student, save_student

__all__ = ["PAPER_STUDENTS", "STUDENT_FILE", "build_student", "load_student", "save_student"]
