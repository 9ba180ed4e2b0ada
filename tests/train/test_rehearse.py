"""A rehearsal runs the real loop, for every method."""

import numpy as np
import pytest
from small import CPU, recipe_for

from kdcache.heads import ProjectionHead
from kdcache.images import index_images, open_images
from kdcache.methods import TeacherSide, available_methods
from kdcache.train import loop, rehearse
from kdcache.views import ViewMaker, get_policy, get_renderer


@pytest.mark.parametrize("name", available_methods())
def test_every_method_can_be_rehearsed(name, tiny_images, monkeypatch):
    recipe = recipe_for(name)
    images = open_images(tiny_images)
    ids = index_images(images).ids
    maker = ViewMaker(images, ids, get_policy("weak"), 0, get_renderer(), 32)
    head = ProjectionHead([{"kind": "linear", "in": 96, "out": 16, "bias": True}])
    sides = [TeacherSide(96 if recipe.needs.target == "feature" else 16, head)]
    steps, real = [], loop._step
    monkeypatch.setattr(loop, "_step", lambda *a: (steps.extend(a[2]), real(*a))[1])
    took = rehearse(
        recipe,
        maker,
        sides if recipe.needs.target is not None else [],
        num_samples=48,
        steps=2,
        device=CPU,
    )
    assert took > 0
    assert len(steps) == 4
    assert {len(view) for batch in steps for view in batch.images} == {8}
    assert all(np.isfinite(t.numpy()).all() for batch in steps for t in batch.targets)
