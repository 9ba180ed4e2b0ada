"""Check: views rendered here are compared with the witnesses of those that the teacher saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.errors import CacheMismatch, DataError
from kdcache.versions import library_versions
from kdcache.views.maker import ViewMaker
from kdcache.views.witness import Difference, Witness, compare

TOLERATED_LEVELS = 1.0
"""Mean thumbnail difference up to which pixels of equal parameters count as the same view. Another
library's antialiased resize moves pixels by 0.03 to 0.8 levels, its colour by 0.5 to 1; YIQ hue by
5 (pipeline.md, section 3)."""

_DECODERS = ("simplejpeg", "pillow")

_HINTS = {
    "decode": "decode with the image library the cache names (`kdcache info CACHE`)",
    "crop": "use the policy, the seed and the kdcache version the cache names "
    "(`kdcache info CACHE`)",
    "geometry": "install the torch version the cache names (`kdcache info CACHE`)",
    "colour": "install the OpenCV version the cache names (`kdcache info CACHE`)",
}


@dataclass(frozen=True)
class Report:
    """What a check found that was no reason to stop."""

    num_checked: int
    differences: tuple[Difference, ...]
    """Of the views that are not the same bits, but within the tolerance."""

    def __str__(self) -> str:
        """One line for a person."""
        if not self.differences:
            return f"{self.num_checked} of {self.num_checked} views are the same bits"
        worst = max(self.differences, key=lambda difference: difference.mean_levels)
        return (
            f"{self.num_checked - len(self.differences)} of {self.num_checked} views are the same "
            f"bits; the others differ first in {worst.stage}, by at most "
            f"{worst.mean_levels:.3f} levels in the mean (tolerated: {TOLERATED_LEVELS})"
        )


def take_witness(maker: ViewMaker, row: int, view: int) -> Witness:
    """The witness of one view, rendered now.

    Raises:
        DataError: the image is unreadable, or not the one that was indexed.
    """
    made = maker.make(np.array([row]), np.array([view]), witness=np.ones((1, 1), np.bool_))
    if made.unreadable:
        raise DataError(
            f"`{maker.images.paths[row]}` cannot be decoded: {made.unreadable[row]}",
            hint="install the same kdcache and image libraries as for the extraction",
        )
    return made.witnesses[0]


def measure_witnesses(kept: Sequence[Witness], maker: ViewMaker, count: int = 16) -> Report:
    """What differs in up to `count` views, spread over the witnesses, however much it is.

    Raises:
        DataError: an image is unreadable, or not the one that was indexed.
    """
    ordered = sorted(kept, key=lambda witness: (witness.row, witness.view))
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round())
    differences = [
        compare(ordered[i], take_witness(maker, ordered[i].row, ordered[i].view))
        for i in chosen.astype(int)
    ]
    return Report(len(chosen), tuple(found for found in differences if found is not None))


def check_witnesses(kept: Sequence[Witness], maker: ViewMaker, count: int = 16) -> Report:
    """What differs in up to `count` views, spread over the witnesses, when rendered here.

    Raises:
        CacheMismatch: there are none, or a view differs by more than the tolerance; the message
            names the first stage that differs.
        DataError: an image is unreadable, or not the one that was indexed.
    """
    if not kept:
        raise CacheMismatch(
            "the cache keeps no witness of the views that its teacher saw",
            hint="extract it again with `kdcache extract`",
        )
    report = measure_witnesses(kept, maker, count)
    for difference in report.differences:
        _refuse_other_views(difference)
    return report


def is_tolerated(difference: Difference) -> bool:
    """Whether the parameters are equal and the pixels nearly so: the same view, to a teacher."""
    pixels_alone = difference.stage in ("geometry", "colour")
    return pixels_alone and difference.mean_levels <= TOLERATED_LEVELS


def other_releases(made_with: Mapping[str, str]) -> list[str]:
    """The libraries that decode images and are other releases here: each with both versions.

    Args:
        made_with: the versions in a cache's manifest.
    """
    here = library_versions()
    return [
        f"{name} {here[name]}, not {made_with[name]}"
        for name in _DECODERS
        if made_with.get(name, here[name]) != here[name]
    ]


def _refuse_other_views(difference: Difference) -> None:
    """Raise unless the parameters are equal and the pixels nearly so."""
    if is_tolerated(difference):
        return
    raise CacheMismatch(
        f"view `{difference.view}` of row `{difference.row}` is not the one the teacher saw: the "
        f"first stage that differs is `{difference.stage}`, and the pixels differ by "
        f"{difference.mean_levels:.2f} levels in the mean, {difference.max_levels} at most; "
        f"expected are equal `decode` and `crop` and at most {TOLERATED_LEVELS} in the mean",
        hint=_HINTS[difference.stage],
    )
