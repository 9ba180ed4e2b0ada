"""Own teachers: any module that turns images into features, from Python or as `module:function`."""

import importlib
import sys
from collections.abc import Callable

from torch import nn

from kdcache.errors import ConfigError, TeacherError
from kdcache.heads import ProjectionHead
from kdcache.networks import Backbone, Rgb, parameter_digest
from kdcache.teachers.teacher import Teacher


def own_teacher(
    name: str,
    model: nn.Module,
    *,
    image_size: int,
    mean: Rgb,
    std: Rgb,
    head: nn.Sequential | None = None,
    interpolation: str = "bilinear",
    licence: str | None = None,
) -> Teacher:
    """A teacher of one's own making, frozen, in eval mode.

    Args:
        name: what caches will call it; as `module:function` it can be loaded again by its name.
        model: takes normalised images `Float[Tensor, "B 3 S S"]`, gives `Float[Tensor, "B F"]`.
        image_size: side of the images in pixels.
        mean: of red, green and blue in [0, 1], subtracted before the division by `std`.
        head: features to embeddings, of Linear, BatchNorm1d, ReLU and GELU layers.
        interpolation: of the resizing that the weights were made with; recorded, not applied.
        licence: of the weights.

    Raises:
        TeacherError: the model does not give one vector an image, or the head does not fit it.
    """
    try:
        backbone = Backbone(name, model, image_size, mean, std)
        projection = None if head is None else ProjectionHead.from_modules(head)
    except ConfigError as error:
        raise TeacherError(str(error), hint=error.hint) from error
    return Teacher(
        name,
        backbone,
        projection,
        weights={"source": "own", "sha256": parameter_digest(model)},
        interpolation=interpolation,
        licence=licence,
    )


def is_own(name: str) -> bool:
    """Whether a name has the form `module:function`."""
    module, _, function = name.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), function])


def load_own(name: str, image_size: int | None) -> Teacher:
    """The teacher that `module:function` returns; modules of the current folder are found too.

    Raises:
        TeacherError: there is no such function, or it gives no teacher; what it raises itself
            passes through.
    """
    module_name, _, function_name = name.partition(":")
    teacher = _function(name, module_name, function_name)()
    if not isinstance(teacher, Teacher):
        raise TeacherError(
            f"`{name}` gives a `{type(teacher).__name__}`, not a Teacher",
            hint="return kdcache.teachers.own_teacher(...) from it (docs/own_teacher.md)",
        )
    teacher.name = name
    if image_size is not None and image_size != teacher.image_size:
        teacher.resize(image_size)
    return teacher


def _function(name: str, module_name: str, function_name: str) -> Callable[[], object]:
    here = ""  # the current folder, as `python -m` searches it
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another
        raise TeacherError(
            f"there is no teacher `{name}`: no module `{error.name}` can be imported",
            hint="run the command in the folder of the module, or install it; "
            "`kdcache teachers` lists the teachers that come with names",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise TeacherError(
            f"`{module.__file__}` has no function `{function_name}`",
            hint="write module:function, where the function takes nothing and returns a teacher",
        )
    found: Callable[[], object] = function
    return found
