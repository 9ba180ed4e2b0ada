"""A projection head for a teacher that has none: fitted to its cached features, kept beside them.

SEED, DisCo and Retro distil an embedding, and most strong teachers of today come without the head
that would make one. Only the head is stored: its embeddings are worked out from the features as
they are read.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdcache.derive.effect import HEADINGS, Effect, measure
from kdcache.derive.infonce import InfoNce, default_steps, fit_infonce
from kdcache.derive.whiten import EIGENVALUE_FLOOR, MAX_IMAGES, fit_whitening
from kdcache.errors import CacheMismatch, ConfigError
from kdcache.heads import ProjectionHead
from kdcache.progress import Bar
from kdcache.store import Cache, describe_head, grow_cache, head_files, hint_at_ancestor
from kdcache.table import format_table
from kdcache.versions import library_versions

Fit = Literal["infonce", "whiten"]


@dataclass(frozen=True)
class HeadReport:
    """A cache with its fitted head, and what the head does."""

    cache: Cache
    before: Effect | None
    """Of the feature; None where the head was there already."""
    after: Effect | None
    """Of the embedding."""
    fit_s: float

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        origin = self.cache.head_origin()
        assert origin is not None
        what = f"{self.cache.path}: {describe_head(origin)}"
        if self.before is None or self.after is None:
            return [f"{what}; it was there, nothing has changed"]
        result = ", ".join(f"{name} {value:.4g}" for name, value in origin["result"].items())
        rows = [["feature", *self.before.cells()], ["embedding", *self.after.cells()]]
        table = format_table(["target of SEED", *HEADINGS], rows)
        return [f"{what}, in {self.fit_s:.1f} s ({result})", table, *self.after.target.advice()]


def run_head(
    cache: Cache, *, method: Fit, dim: int, steps: int | None, seed: int, bar: Bar
) -> HeadReport:
    """Fit a head and add it to the cache; where it has this very head, nothing is done.

    Args:
        steps: of `infonce`; None is as many as that many images can bear.

    Raises:
        CacheMismatch: the cache has a head, no features, or too few views.
        ConfigError: `whiten` with more dimensions than the feature has, or with steps.
    """
    settings = _settings(cache, method, dim, steps)
    origin = {"kind": "fitted", "method": method, "settings": settings, "seed": seed}
    if (there := cache.head_origin()) is not None:
        _refuse_another(cache, there, origin)
        return HeadReport(grow_cache(cache, {}), None, None, 0.0)
    _check(cache, method, dim)
    before = measure(cache, "feature")
    started = time.monotonic()
    head, result = _fit(cache, method, settings, seed, bar)
    fit_s = time.monotonic() - started
    origin = {**origin, "result": result, "versions": library_versions()}
    after = measure(cache, "embedding", head)
    grown = grow_cache(cache, head_files(head.layers, head.to_arrays(), origin))
    return HeadReport(grown, before, after, fit_s)


def _settings(cache: Cache, method: Fit, dim: int, steps: int | None) -> dict[str, Any]:
    if method == "infonce":
        return asdict(InfoNce(dim=dim, steps=steps or default_steps(cache.manifest.num_readable)))
    if steps is not None:
        raise ConfigError("`whiten` is worked out, not learnt", hint="leave --steps out")
    return {"dim": dim, "eigenvalue_floor": EIGENVALUE_FLOOR, "max_images": MAX_IMAGES}


def _fit(
    cache: Cache, method: Fit, settings: Mapping[str, Any], seed: int, bar: Bar
) -> tuple[ProjectionHead, dict[str, float]]:
    if method == "infonce":
        wanted = InfoNce(**settings)
        with bar("fit", total=wanted.steps, unit="steps") as progress:
            head, loss = fit_infonce(cache, wanted, seed=seed, progress=progress)
        return head, {"loss": loss}
    with bar("covariance", total=cache.num_views, unit="views") as progress:
        head, kept = fit_whitening(cache, settings["dim"], seed=seed, progress=progress)
    return head, {"variance": kept}


def _check(cache: Cache, method: Fit, dim: int) -> None:
    if "feature" not in cache.arrays:
        raise CacheMismatch(
            f"a head is fitted to features, and `{cache.path}` holds: {', '.join(cache.arrays)}",
            hint="extract again, to another --out, with --arrays feature",
        )
    width = cache.arrays["feature"].dim
    if method == "whiten" and dim > width:
        raise ConfigError(
            f"{dim} directions are asked for, and the feature has {width}", hint=f"--dim {width}"
        )
    if method == "infonce" and (cache.num_views < 2 or cache.manifest.num_readable < 2):
        raise CacheMismatch(
            f"`infonce` learns from two views of each of several images, and `{cache.path}` holds "
            f"{cache.num_views} of {cache.manifest.num_readable:,}",
            hint="whitening needs one: --method whiten; or extract with `--views 2` or more",
        )


def _refuse_another(cache: Cache, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if there["kind"] == "teacher":
        raise CacheMismatch(
            f"`{cache.path}` has {describe_head(there)} already",
            hint="train on it as it is; to fit another one, extract with --weights that hold none",
        )
    if any(there[key] != value for key, value in asked.items()):
        raise CacheMismatch(
            f"`{cache.path}` has {describe_head(there)}, already",
            hint=f"train on it as it is, or take {hint_at_ancestor(cache, 'head')}",
        )
