"""Do these caches serve this method? Asked before the first step, answered with what to do."""

from collections.abc import Sequence

from kdcache import distributed
from kdcache.errors import CacheMismatch, ConfigError
from kdcache.methods import Needs
from kdcache.recipe import Recipe
from kdcache.store import Cache, Selection
from kdcache.views import Policy, get_policy, renderer_of


def check_caches(recipe: Recipe, caches: Sequence[Cache], *, online: bool) -> None:
    """Refuse caches that the method cannot learn from, or whose views cannot be drawn here.

    Raises:
        CacheMismatch: an array, a head, a graph, views, policy or renderer are not as needed.
        ConfigError: there are too few or too many of them.
    """
    _check_count(recipe, caches, online=online)
    for cache in caches:
        _check_targets(recipe, cache)
        _check_num_views(recipe, cache)
        _check_views(recipe, cache)
        _check_same_views(caches[0], cache)
    if caches and recipe.needs.neighbours:
        _check_graph(recipe, caches[0])


def check_num_views(num_views: int, caches: Sequence[Cache]) -> None:
    """Refuse to go on with a run where views that it has shown are not here any more.

    Raises:
        CacheMismatch: which cache has fewer, and what to do.
    """
    for cache in caches:
        if num_views > cache.num_views:
            raise CacheMismatch(
                f"the run was begun with {num_views} views, and `{cache.path}` holds"
                f" {cache.num_views}",
                hint=_more(cache, tuple(cache.arrays), num_views, "give the cache that it had"),
            )


def check_numbers(recipe: Recipe, num_images: int) -> None:
    """Refuse a batch or a queue that this many images cannot fill.

    Raises:
        ConfigError: which setting is too large, and for what.
    """
    needs, batch = recipe.needs, recipe.train.batch_size
    if batch > num_images:
        raise ConfigError(
            f"a batch of {batch} is larger than the {num_images:,} images",
            hint=f"--set train.batch_size={_power_of_two_below(num_images)}",
        )
    _check_parts(recipe)
    _check_queue(needs, num_images)


def _check_parts(recipe: Recipe) -> None:
    """Refuse a batch that cannot be made up as the recipe says, or dealt to the processes."""
    train = recipe.train
    if recipe.needs.couples_batch and train.repeats * train.accumulate > 1:
        name = "repeats" if train.repeats > 1 else "accumulate"
        raise ConfigError(
            f"`train.{name}` is {getattr(train, name)}, but the loss of `{recipe.method}` couples "
            "the images of a batch: it would be another one",
            hint=f"--set train.{name}=1",
        )
    if train.epochs % train.repeats:
        raise ConfigError(
            f"`train.repeats` is {train.repeats}, which does not divide {train.epochs} epochs: "
            "some images would be shown more often than others",
            hint=f"--set train.epochs={_multiple_above(train.epochs, train.repeats)}",
        )
    smallest = train.repeats * train.accumulate
    if train.batch_size % smallest:
        raise ConfigError(
            f"a batch of {train.batch_size} cannot be made of {train.accumulate} parts of images "
            f"that are shown {train.repeats} times each",
            hint=f"--set train.batch_size={_multiple_above(train.batch_size, smallest)}",
        )
    world = distributed.world_size()
    if train.batch_size < smallest * world:
        raise ConfigError(
            f"{train.batch_size // smallest} images cannot be dealt to {world} processes",
            hint=f"--set train.batch_size={smallest * world}, or start fewer processes",
        )


def _check_queue(needs: Needs, num_images: int) -> None:
    """Refuse a queue that holds other views of the very images that it is compared with."""
    if needs.own_keys > num_images // 2:
        raise ConfigError(
            f"a queue of {needs.own_keys:,} keys of the student's own holds other views of the "
            f"very images it is compared with: there are only {num_images:,} images",
            hint=f"--set method.queue={_power_of_two_below(max(num_images // 2, 1))}",
        )
    if needs.mask_own:
        return
    if needs.negatives == "all":
        raise ConfigError(
            "a queue of all samples holds the very images it is compared with",
            hint="--set method.mask_own=true",
        )
    if needs.negatives > num_images // 2:
        raise ConfigError(
            f"a queue of {needs.negatives:,} holds other views of the very images it is compared "
            f"with: there are only {num_images:,} images",
            hint="--set method.mask_own=true, or a queue of at most half of the images",
        )


def _check_count(recipe: Recipe, caches: Sequence[Cache], *, online: bool) -> None:
    needs = recipe.needs
    if needs.target is None and caches:
        raise ConfigError(
            f"`{recipe.method}` has no teacher, but a cache is given", hint="leave --cache out"
        )
    if needs.target is not None and not caches:
        raise ConfigError(
            f"`{recipe.method}` learns from a teacher, but no cache is given",
            hint="add `--cache CACHE`; `kdcache extract` makes one",
        )
    if online and len(caches) != 1:
        raise ConfigError(
            f"--online asks the teacher of one cache, but {len(caches)} are given",
            hint="give one --cache, with a method that has a teacher",
        )
    if len(caches) > 1 and not needs.several:
        raise ConfigError(
            f"`{recipe.method}` learns from one teacher, but {len(caches)} caches are given",
            hint="give one --cache, or --method simreg, which takes several",
        )


def _check_targets(recipe: Recipe, cache: Cache) -> None:
    needs = recipe.needs
    assert needs.target is not None
    has_head = cache.head() is not None
    derived = needs.target == "embedding" and has_head and "feature" in cache.arrays
    if needs.head and not has_head:
        raise CacheMismatch(
            f"`{recipe.method}` trains through the teacher's projection head, but `{cache.path}` "
            "holds none",
            hint=f"fit one to the cached features: kdcache head {cache.path}",
        )
    if needs.target not in cache.arrays and not derived:
        raise CacheMismatch(
            f"`{recipe.method}` learns from the teacher's `{needs.target}`, but "
            f"`{cache.path}` holds only: {', '.join(cache.arrays)}",
            hint=_more(
                cache, (needs.target,), cache.num_views, _without(needs.target, recipe, cache)
            ),
        )


def _check_num_views(recipe: Recipe, cache: Cache) -> None:
    wanted, repeats = recipe.run.views, recipe.train.repeats
    shown = recipe.needs.views * repeats
    shows = f"`{recipe.method}` shows {shown} views of an image in a step"
    if repeats > 1:
        shows += f" (`train.repeats` is {repeats})"
    if max(shown, wanted) > cache.num_views:
        raise CacheMismatch(
            shows
            + (f" and `run.views` is {wanted}" if wanted else "")
            + f", but `{cache.path}` holds {cache.num_views}",
            hint=_more(
                cache,
                tuple(cache.arrays),
                max(shown, wanted),
                f"extract again with `--views {max(shown, wanted)}` or more",
            ),
        )
    if 0 < wanted < shown:
        raise ConfigError(
            f"{shows}, but `run.views` is {wanted}",
            hint=f"--set run.views={shown}, or more",
        )


def _check_graph(recipe: Recipe, cache: Cache) -> None:
    graph, wanted = cache.neighbours(), recipe.needs.neighbours
    if graph is None:
        raise CacheMismatch(
            f"`{recipe.method}` shows neighbours of each image, but `{cache.path}` holds no graph "
            "of them",
            hint=f"kdcache neighbours {cache.path}",
        )
    if graph.index.shape[1] < wanted:
        raise CacheMismatch(
            f"`{recipe.method}` shows {wanted} neighbours of each image, but the graph of "
            f"`{cache.path}` holds {graph.index.shape[1]}",
            hint=f"in a copy without the graph: kdcache neighbours CACHE --k {wanted}",
        )


def _check_same_views(first: Cache, other: Cache) -> None:
    """Several teachers are shown one picture, so all of them must have seen it."""
    for name in ("policy", "seed", "renderer"):
        if first.recipe["views"][name] != other.recipe["views"][name]:
            raise CacheMismatch(
                f"the views of `{other.path}` are not those of `{first.path}`: their `{name}` is "
                f"{other.recipe['views'][name]!r} and {first.recipe['views'][name]!r}",
                hint="extract both with the same --policy and --seed",
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
    _check_sets(recipe, here)
    if Policy.from_dict(made["policy"]) != here:
        raise CacheMismatch(
            f"`{cache.path}` was made with version {made['policy'].get('version')} of the policy "
            f"`{asked}`; this kdcache has version {here.version}",
            hint="install the kdcache that made the cache, or extract again",
        )
    renderer_of(cache.recipe, cache.path)


def _check_sets(recipe: Recipe, policy: Policy) -> None:
    """Refuse to break up sets of a large view and small ones, or to take large ones for small."""
    in_set, wanted = policy.views_in_set, recipe.needs.views
    if recipe.run.views % in_set:
        raise ConfigError(
            f"`{policy.name}` views come in sets of {in_set}, but `run.views` is "
            f"{recipe.run.views}",
            hint=f"--set run.views={max(recipe.run.views // in_set, 1) * in_set}",
        )
    small = getattr(recipe.method_config, "small_patches", 0)
    if (in_set > 1 or small) and wanted != in_set:
        raise CacheMismatch(
            f"`{policy.name}` views come in sets of {in_set}, but `{recipe.method}` shows {wanted} "
            "of an image in a step",
            hint="train SEED with whole sets: `--method seed --set method.small_patches=6` on a "
            "cache of `multicrop` views",
        )


def _without(target: str, recipe: Recipe, cache: Cache) -> str:
    if target == "embedding" and cache.head() is None:
        instead = f"fit a projection head to the cached features: kdcache head {cache.path}"
        if hasattr(recipe.method_config, "target"):
            instead += "; or distil the feature itself: --set method.target=feature"
        return instead
    return f"extract again, to another --out, with `--arrays {target}` or both arrays"


def _more(cache: Cache, arrays: tuple[str, ...], num_views: int, otherwise: str) -> str:
    """How to get what is lacking: by a wider pull, if this is a copy of a part of what has it."""
    copy, manifest = cache.copy, cache.manifest
    has = all(f"{array}/zarr.json" in manifest.files for array in arrays)
    if copy is None or num_views > manifest.num_views or not has:
        return otherwise
    return cache.pull_hint(Selection(arrays, num_views, copy.selection.rows))


def _multiple_above(number: int, factor: int) -> int:
    return -(-number // factor) * factor


def _power_of_two_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)
