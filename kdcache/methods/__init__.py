"""The shelf of methods: each file without a leading underscore is one, named after it."""

import difflib
import importlib
import pkgutil

from kdcache.errors import ConfigError
from kdcache.methods._base import Batch, Loss, Method, Needs, TeacherSide

__all__ = ["Batch", "Loss", "Method", "Needs", "TeacherSide", "available_methods", "get_method"]


def available_methods() -> list[str]:
    """The names of all methods on the shelf, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get_method(name: str) -> type[Method]:
    """The method in the file `<name>.py`.

    Raises:
        ConfigError: there is no such file.
    """
    known = available_methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"no method `{name}`", hint=hint)
    module = importlib.import_module(f"{__name__}.{name}")
    (method,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    return method
