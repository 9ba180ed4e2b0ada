"""Views: what is looked at, drawn by Philox and rendered the same way everywhere."""

from kdcache.views.check import (
    Report,
    check_witnesses,
    is_tolerated,
    measure_witnesses,
    other_releases,
    take_witness,
)
from kdcache.views.draw import VIEW, draw
from kdcache.views.maker import Made, ViewMaker
from kdcache.views.philox import philox4x32, split_seed
from kdcache.views.policies import Policy, SmallCrops, available_policies, get_policy
from kdcache.views.render import Renderer, get_renderer, renderer_of
from kdcache.views.witness import (
    NUM_WITNESSES,
    Difference,
    Witness,
    compare,
    witness_mask,
    witnesses_from_arrays,
    witnesses_to_arrays,
)

__all__ = [
    "NUM_WITNESSES",
    "VIEW",
    "Difference",
    "Made",
    "Policy",
    "Renderer",
    "Report",
    "SmallCrops",
    "ViewMaker",
    "Witness",
    "available_policies",
    "check_witnesses",
    "compare",
    "draw",
    "get_policy",
    "get_renderer",
    "is_tolerated",
    "measure_witnesses",
    "other_releases",
    "philox4x32",
    "renderer_of",
    "split_seed",
    "take_witness",
    "witness_mask",
    "witnesses_from_arrays",
    "witnesses_to_arrays",
]
