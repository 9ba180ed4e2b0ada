"""The versions of what a result depends on, for every artefact's provenance."""

import platform
from importlib import metadata

import kdcache

_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "zarr",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
)


def library_versions() -> dict[str, str]:
    """Name and version of Python, of kdcache and of the libraries that decide bits."""
    versions = {"python": platform.python_version(), "kdcache": kdcache.__version__}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
