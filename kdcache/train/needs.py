"""Does this cache serve this method? Asked before the first step, answered with what to do."""

from kdcache.errors import CacheMismatch, ConfigError
from kdcache.recipe import Recipe
from kdcache.store import Cache
from kdcache.views import Policy, get_policy, get_renderer


def check_cache(recipe: Recipe, cache: Cache) -> None:
    """Refuse a cache that the method cannot learn from, or whose views cannot be drawn here.

    Raises:
        CacheMismatch: an array, views, the policy or the renderer are not what is needed.
    """
    needs = recipe.needs
    if needs.target is None:
        raise ConfigError(
            f"`{recipe.method}` has no teacher, but a cache is given", hint="leave --cache out"
        )
    if needs.target not in cache.arrays:
        raise CacheMismatch(
            f"`{recipe.method}` learns from the teacher's `{needs.target}`, but "
            f"`{cache.path}` holds only: {', '.join(cache.arrays)}",
            hint=_without(needs.target, recipe, cache),
        )
    if needs.views > cache.num_views:
        raise CacheMismatch(
            f"`{recipe.method}` shows {needs.views} views of an image in a step, but "
            f"`{cache.path}` holds {cache.num_views}",
            hint=f"extract again with `--views {needs.views}` or more",
        )
    _check_views(recipe, cache)


def check_numbers(recipe: Recipe, num_images: int) -> None:
    """Refuse a batch or a queue that this many images cannot fill.

    Raises:
        ConfigError: which setting is too large, and for what.
    """
    needs = recipe.needs
    if recipe.train.batch_size > num_images:
        raise ConfigError(
            f"a batch of {recipe.train.batch_size} is larger than the {num_images:,} images",
            hint=f"--set train.batch_size={_power_of_two_below(num_images)}",
        )
    if needs.negatives > num_images // 2 and not needs.mask_own:
        raise ConfigError(
            f"a queue of {needs.negatives:,} holds other views of the very images it is compared "
            f"with: there are only {num_images:,} images",
            hint="--set method.mask_own=true, or a queue of at most half of the images",
        )


def _check_views(recipe: Recipe, cache: Cache) -> None:
    made = cache.recipe["views"]
    asked = recipe.run.policy or recipe.method_class.views
    if made["policy"]["name"] != asked:
        raise CacheMismatch(
            f"`{cache.path}` holds `{made['policy']['name']}` views, but `{recipe.method}` is "
            f"to be trained on `{asked}` views",
            hint=f"extract with `--policy {asked}`, or train on what the cache holds: "
            f"--set run.policy={made['policy']['name']}",
        )
    here = get_policy(asked)
    if Policy.from_dict(made["policy"]) != here:
        raise CacheMismatch(
            f"`{cache.path}` was made with version {made['policy'].get('version')} of the policy "
            f"`{asked}`; this kdcache has version {here.version}",
            hint="install the kdcache that made the cache, or extract again",
        )
    renderer = get_renderer(made["renderer"]["id"])
    if renderer.version != made["renderer"]["version"]:
        raise CacheMismatch(
            f"`{cache.path}` was rendered by `{renderer.id}` version "
            f"{made['renderer']['version']}; this kdcache has version {renderer.version}",
            hint="install the kdcache that made the cache, or extract again",
        )


def _without(target: str, recipe: Recipe, cache: Cache) -> str:
    if target == "embedding" and cache.head() is None:
        instead = "extract with a teacher that has a projection head"
        if hasattr(recipe.method_config, "target"):
            instead += ", or distil the feature: --set method.target=feature"
        return instead
    return "extract again, to another --out, with `--arrays feature,embedding`"


def _power_of_two_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)
