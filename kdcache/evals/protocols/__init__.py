"""The shelf of protocols: each file without a leading underscore is one family of presets."""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from kdcache.errors import ConfigError
from kdcache.evals.protocols._base import Asked, Need, Preset, Protocol
from kdcache.settings import override, parse

__all__ = [
    "ALIASES",
    "Asked",
    "Need",
    "Preset",
    "Protocol",
    "about_protocol",
    "ask",
    "available_presets",
    "available_protocols",
    "get_protocol",
]

ALIASES = {
    "knn-weighted": "knn:weighted",
    "linear": "fast-linear",
    "linear-augmented": "linear:simreg",
}
"""Names of old; scores carry the new ones."""


def available_protocols() -> list[str]:
    """The names of all families on the shelf, sorted."""
    files = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in files)


def available_presets() -> list[str]:
    """All that can be asked for: `knn`, `knn:dino`, ..."""
    return [
        _full(family, preset)
        for family in available_protocols()
        for preset in get_protocol(family).presets
    ]


def get_protocol(family: str) -> Protocol:
    """The protocol in the file of this name."""
    module = importlib.import_module(f"{__name__}.{family.replace('-', '_')}")
    protocol = module.PROTOCOL
    assert isinstance(protocol, Protocol)
    return protocol


def about_protocol(family: str) -> str:
    """The first line of its file."""
    get_protocol(family)
    module = sys.modules[f"{__name__}.{family.replace('-', '_')}"]
    return (module.__doc__ or "").splitlines()[0]


def ask(
    names: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    ks: Sequence[int] | None = None,
    policy: str | None = None,
) -> list[Asked]:
    """What these names ask for, each once.

    Args:
        overrides: `family.key=value`, which holds for all presets of the family that are asked for.
        ks: of the kNN protocols that are no paper's.
        policy: of the view by which an image is judged; None leaves it to each preset.

    Raises:
        ConfigError: no such protocol, or a setting that none of them has.
    """
    places = dict.fromkeys(_place(name) for name in names)
    tables: dict[str, dict[str, Any]] = {}
    for text in overrides:
        override(tables, text)
    for family in tables:
        if family not in {asked for asked, _ in places}:
            raise ConfigError(
                f"`--set {family}.{min(tables[family])}` changes a protocol that is not asked for",
                hint=f"asked for are: {', '.join(sorted({asked for asked, _ in places}))}",
            )
    free = [(f, p) for f, p in places if f == "knn" and not get_protocol(f).presets[p].paper]
    if ks is not None and not free:
        raise ConfigError(
            f"--k {','.join(map(str, ks))} is given, but neither knn nor knn:weighted is asked for",
            hint="leave it out, or change a paper's protocol by --set knn.k=[10]",
        )
    return [
        _ask(*place, tables.get(place[0], {}), policy, ks if place in free else None)
        for place in places
    ]


def _ask(
    family: str,
    preset: str,
    table: dict[str, Any],
    policy: str | None,
    ks: Sequence[int] | None,
) -> Asked:
    if ks is not None:
        table = {**table, "k": list(ks)}
    found = get_protocol(family).presets[preset]
    own = found.config.model_dump()
    config = parse(type(found.config), {**own, **table}, family)
    now = config.model_dump()
    changed = {key: now[key] for key in table if now[key] != own[key]}
    if found.paper and policy not in (None, found.view):
        changed["view"] = policy
    return Asked(family, preset, config, policy or found.view, found.paper, changed)


def _place(name: str) -> tuple[str, str]:
    """Family and preset of a name."""
    family, _, preset = ALIASES.get(name, name).partition(":")
    if family in available_protocols() and preset in get_protocol(family).presets:
        return family, preset
    known = available_presets()
    mine = [other for other in known if other.partition(":")[0] == family]
    near = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
    hint = f"there are: {', '.join(mine)}" if mine else f"there are: {', '.join(known)}"
    raise ConfigError(
        f"no protocol `{name}`", hint=f"did you mean `{near[0]}`? {hint}" if near else hint
    )


def _full(family: str, preset: str) -> str:
    return f"{family}:{preset}" if preset else family
