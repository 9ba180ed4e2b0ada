"""r1 must look like Pillow and torchvision, and be the same bits everywhere."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import functional
from views import oracle

from kdcache.errors import CacheMismatch
from kdcache.views import VIEW, Policy, draw, get_policy, get_renderer, renderer_of
from kdcache.views.render import _ORDERS

ROOT = Path(__file__).parents[2]
SIZE = 96


def photograph(height=150, width=200, seed=0):
    """Coloured noise with the 1/f spectrum of photographs, and edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) / frequency
        planes.append(np.fft.ifft2(spectrum).real)
    grey, *tints = planes
    planes = [grey / grey.std() + 0.5 * tint / tint.std() for tint in (grey, *tints)]
    image = 120 + 45 * np.stack(planes, -1)
    image[height // 3 : height // 2, width // 4 : width // 2] = (200, 60, 40)
    return np.clip(image, 0, 255).astype(np.uint8)


def view_with(**fields):
    view = np.zeros((), VIEW)
    for name in ("brightness", "contrast", "saturation"):
        view[name] = 4096
    for name, value in fields.items():
        view[name] = value
    return view[()]


def error_of(ours, theirs):
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 150, 200), (17, 30, 120, 110), (40, 50, 20, 31)])
def test_geometry_is_a_crop_then_pillows_bilinear_resize(box, flip):
    pixels = photograph()
    top, left, height, width = box
    view = view_with(top=top, left=left, height=height, width=width, flip=flip)
    ours = get_renderer().geometry(pixels, view, SIZE)
    image = Image.fromarray(pixels)
    theirs = functional.resized_crop(image, top, left, height, width, [SIZE, SIZE])
    if flip:
        theirs = functional.hflip(theirs)
    # Pillow rounds to whole levels between rows and columns; nearer to the truth than it: below.
    assert error_of(ours, theirs) < 0.2
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


def exact_resize(box, size):
    """By float64, rounded once."""
    for _ in range(2):
        scale = len(box) / size
        away = np.arange(len(box)) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale
        heights = np.maximum(1 - np.abs(away) / max(scale, 1), 0)
        box = np.einsum("sl,lnc->nsc", heights / heights.sum(1, keepdims=True), box)
    return np.rint(box)


@pytest.mark.parametrize("size", [24, 96, 224])
def test_geometry_is_the_exact_resize_in_all_but_a_few_pixels(size):
    pixels = photograph()
    ours = get_renderer().geometry(pixels, view_with(height=150, width=200), size)
    apart = np.abs(ours - exact_resize(pixels, size))
    assert apart.max() <= 1
    assert apart.mean() < 0.02


def test_geometry_reads_nothing_outside_the_box():
    pixels = photograph()
    view = view_with(top=20, left=30, height=60, width=70)
    before = get_renderer().geometry(pixels, view, SIZE)
    inside = pixels[20:80, 30:100].copy()
    pixels[:] = 0
    pixels[20:80, 30:100] = inside
    np.testing.assert_array_equal(get_renderer().geometry(pixels, view, SIZE), before)


def test_read_only_pixels_are_rendered_too():
    pixels = photograph()
    view = view_with(height=150, width=200)
    before = get_renderer().geometry(pixels, view, SIZE)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(get_renderer().geometry(pixels, view, SIZE), before)


THEIRS = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
}


@pytest.mark.parametrize("factor", [0.6, 0.87, 1.0, 1.13, 1.4])
@pytest.mark.parametrize("name", THEIRS)
def test_a_factor_alone_is_within_a_fraction_of_a_level(name, factor):
    pixels = photograph()[:SIZE, :SIZE].copy()
    quantised = round(factor * 4096)
    ours = get_renderer().colour(pixels, view_with(jitter=True, **{name: quantised}))
    theirs = THEIRS[name](Image.fromarray(pixels), quantised / 4096)
    assert error_of(ours, theirs) < 0.25


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.05, 0.1, 0.5])
def test_hue_turns_as_in_pillow(shift):
    pixels = photograph()[:SIZE, :SIZE].copy()
    ours = get_renderer().colour(pixels, view_with(jitter=True, hue=round(shift * 4096)))
    theirs = functional.adjust_hue(Image.fromarray(pixels), shift)
    assert error_of(ours, theirs) < 2


def test_a_third_of_a_turn_makes_red_green():
    pixels = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    ours = get_renderer().colour(pixels, view_with(jitter=True, hue=round(4096 / 3)))
    np.testing.assert_allclose(ours, np.broadcast_to((0, 200, 0), ours.shape), atol=1)


def test_grey_is_pillows():
    pixels = photograph()[:SIZE, :SIZE].copy()
    ours = get_renderer().colour(pixels, view_with(grey=True))
    theirs = functional.to_grayscale(Image.fromarray(pixels), num_output_channels=3)
    assert error_of(ours, theirs) < 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.2, 2.0])
def test_blur_is_pillows_at_the_reference_size(sigma):
    pixels = photograph(240, 240)[:224, :224].copy()
    ours = get_renderer().colour(pixels, view_with(sigma=round(sigma * 1024)))
    theirs = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))
    assert error_of(ours, theirs) < 1


def test_blur_scales_with_the_rendered_size():
    """A view of 112 is blurred with half the sigma of a view of 224."""
    pixels = photograph(120, 120)[:112, :112].copy()
    ours = get_renderer().colour(pixels, view_with(sigma=2048))
    half, whole = (Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(s)) for s in (1, 2))
    assert error_of(ours, half) < 1 < error_of(ours, whole)


@pytest.mark.parametrize("sigma", [0.8, 1.5, 2.0])
def test_a_small_crop_is_blurred_by_pixels_of_its_own(sigma):
    """As SEED blurs it: Pillow's sigma on the crop of 96."""
    only = get_policy("multicrop").to_dict() | {"blur": 1.0, "sigma": [sigma, sigma]}
    only |= dict.fromkeys(("jitter", "grey", "flip"), 0.0)
    side, policy = np.array([150]), Policy.from_dict(only)
    view = draw(policy, 0, np.zeros((1, 16), np.uint8), np.array([1]), side, side)[0, 0]
    pixels = photograph(96, 96)
    ours = get_renderer().colour(pixels, view)
    theirs = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))
    unlike = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma * 96 / 224))
    assert error_of(ours, theirs) < 0.2 * error_of(ours, unlike)


def test_changes_come_in_the_drawn_order():
    pixels = photograph()[:SIZE, :SIZE].copy()
    fields = {"brightness": 5700, "contrast": 2500, "saturation": 5700, "hue": 300}
    for order in (0, 9, 23):
        ours = get_renderer().colour(pixels, view_with(jitter=True, order=order, **fields))
        theirs = Image.fromarray(pixels)
        for name, _ in _ORDERS[order]:
            adjust = THEIRS.get(name, functional.adjust_hue)
            theirs = adjust(theirs, fields[name] / 4096)
        assert error_of(ours, theirs) < 2
    names = [tuple(name for name, _ in order) for order in _ORDERS]
    assert names[0] == ("brightness", "contrast", "saturation", "hue")
    assert names[23] == names[0][::-1]


def test_a_view_without_changes_of_colour_keeps_its_bits():
    pixels = photograph()[:SIZE, :SIZE].copy()
    np.testing.assert_array_equal(get_renderer().colour(pixels, view_with()), pixels)


def test_colour_leaves_its_input_alone_and_gives_the_same_bits_again():
    pixels = photograph()[:SIZE, :SIZE].copy()
    before = pixels.copy()
    view = view_with(jitter=True, brightness=5000, hue=300, order=17, grey=True, sigma=1500)
    first = get_renderer().colour(pixels, view)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(get_renderer().colour(pixels, view), first)
    assert not np.array_equal(first, before)


@pytest.mark.parametrize("box", [(0, 0, 41, 60), (-1, 0, 9, 9), (31, 0, 10, 60), (0, 1, 40, 60)])
def test_a_box_outside_the_image_is_never_read(box):
    pixels = photograph(40, 60)
    view = view_with(**dict(zip(("top", "left", "height", "width"), box, strict=True)))
    with pytest.raises(AssertionError, match="40 x 60"):
        get_renderer().geometry(pixels, view, 8)


def some_views(size, number=12, seed=0):
    """Views with all changes at random, and the image that they are of."""
    rng = np.random.default_rng(seed)
    pixels = photograph(131, 178, seed)
    for _ in range(number):
        height, width = rng.integers(1, 132), rng.integers(1, 179)
        yield pixels, view_with(
            height=height, width=width, top=rng.integers(0, 132 - height),
            left=rng.integers(0, 179 - width), flip=rng.random() < 0.5,
            jitter=rng.random() < 0.9, order=rng.integers(24), grey=rng.random() < 0.2,
            brightness=rng.integers(0, 8193), contrast=rng.integers(0, 8193),
            saturation=rng.integers(0, 8193), hue=rng.integers(-2048, 2049),
            sigma=rng.integers(0, 2049) if rng.random() < 0.7 else 0,
        )  # fmt: skip


@pytest.mark.parametrize("product", [oracle.whole, oracle.products])
@pytest.mark.parametrize("size", [32, 97])
def test_every_bit_is_the_plain_forms_and_that_of_products_of_float32_matrices(size, product):
    renderer = get_renderer()
    for pixels, view in some_views(size):
        shaped = renderer.geometry(pixels, view, size)
        np.testing.assert_array_equal(shaped, oracle.geometry(pixels, view, size, product))
        final = renderer.colour(shaped, view)
        np.testing.assert_array_equal(final, oracle.colour(shaped, view, product))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (2, 3), (600, 257), (300, 513)])
def test_boxes_of_all_shapes_are_the_plain_forms(height, width):
    """More columns than a strip, fewer rows than pixels, and what is almost nothing."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    view = view_with(height=height, width=width, flip=True)
    ours = get_renderer().geometry(pixels, view, 40)
    np.testing.assert_array_equal(ours, oracle.geometry(pixels, view, 40))


def test_black_and_white_stay_so():
    """The largest sums there are."""
    for level in (0, 255):
        pixels = np.full((90, 120, 3), level, np.uint8)
        view = view_with(height=90, width=120, sigma=2048, jitter=True, hue=900)
        shaped = get_renderer().geometry(pixels, view, 33)
        assert np.all(get_renderer().colour(shaped, view) == level)


def digest_of_views() -> str:
    """Of 24 rendered views of an image made of whole numbers, with no random number of numpy's."""
    y, x, c = np.ogrid[:120, :170, :3]
    pixels = ((x * x * 7 + y * y * 5 + x * y * (c + 1) * 3 + 91 * c) % 256).astype(np.uint8)
    digest = hashlib.sha256()
    for n in range(24):
        view = view_with(
            top=n, left=2 * n, height=40 + 2 * n, width=120 - 3 * n, flip=n % 2, jitter=True,
            order=n, grey=n % 7 == 0, brightness=2500 + 150 * n, contrast=5900 - 140 * n,
            saturation=2400 + 160 * n, hue=-400 + 35 * n, sigma=(n % 5) * 400,
        )  # fmt: skip
        shaped = get_renderer().geometry(pixels, view, 56 + n)
        digest.update(shaped.tobytes() + get_renderer().colour(shaped, view).tobytes())
    return digest.hexdigest()


GOLDEN = "c419b198a79a0e3495eb7131bcccadf53b4c7e2197e70a56c03454ab60476472"
"""Another digest is another renderer: it needs another version, and caches made with this one are
not trained from any more."""


def test_the_bits_are_those_that_caches_were_made_with():
    assert digest_of_views() == GOLDEN


@pytest.mark.slow
def test_an_old_processor_makes_the_same_bits(tmp_path):
    """Compiled anew for one that knows SSE3 at most; `haswell` and `generic` were tried by hand."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from views.test_render import digest_of_views;"
        "import numba; assert numba.config.CPU_NAME == 'nocona'; print(digest_of_views())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ, "NUMBA_CPU_NAME": "nocona", "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": str(tmp_path),
        },
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == GOLDEN, done.stderr


def test_kernels_work_where_nothing_may_be_written(tmp_path):
    """Numba finds no place for what it compiles, and each process compiles for itself."""
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []\n"
        "from kdcache.views import kernels; print(kernels.taps(8, 4)[1].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[3, 4, 4, 3]", done.stderr


def test_a_cache_of_another_renderer_is_refused_by_its_name():
    renderer = get_renderer()
    said = {"id": renderer.id, "version": renderer.version}
    assert type(renderer_of({"views": {"renderer": said}}, Path("mine.zarr"))) is type(renderer)
    for other in ({**said, "id": "r0"}, {**said, "version": "9"}):
        with pytest.raises(CacheMismatch, match=r"`mine\.zarr` was rendered by") as error:
            renderer_of({"views": {"renderer": other}}, Path("mine.zarr"))
        assert f"`{other['id']}` version {other['version']}" in str(error.value)
        assert "extract again" in error.value.hint
