"""r0 must look like Pillow and torchvision, and be the same bits every time."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import functional

from kdcache.errors import ConfigError
from kdcache.views import VIEW, Policy, draw, get_policy, get_renderer
from kdcache.views.render import _ORDERS

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
    ours = get_renderer("r0").geometry(pixels, view, SIZE)
    image = Image.fromarray(pixels)
    theirs = functional.resized_crop(image, top, left, height, width, [SIZE, SIZE])
    if flip:
        theirs = functional.hflip(theirs)
    assert error_of(ours, theirs) < 0.1
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2


def test_geometry_reads_nothing_outside_the_box():
    pixels = photograph()
    view = view_with(top=20, left=30, height=60, width=70)
    before = get_renderer("r0").geometry(pixels, view, SIZE)
    inside = pixels[20:80, 30:100].copy()
    pixels[:] = 0
    pixels[20:80, 30:100] = inside
    np.testing.assert_array_equal(get_renderer("r0").geometry(pixels, view, SIZE), before)


def test_read_only_pixels_are_rendered_too():
    pixels = photograph()
    view = view_with(height=150, width=200)
    before = get_renderer("r0").geometry(pixels, view, SIZE)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(get_renderer("r0").geometry(pixels, view, SIZE), before)


THEIRS = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
}


@pytest.mark.parametrize("factor", [0.6, 0.87, 1.0, 1.13, 1.4])
@pytest.mark.parametrize("name", THEIRS)
def test_a_factor_acts_as_in_pillow(name, factor):
    pixels = photograph()[:SIZE, :SIZE].copy()
    quantised = round(factor * 4096)
    ours = get_renderer("r0").colour(pixels, view_with(jitter=True, **{name: quantised}))
    theirs = THEIRS[name](Image.fromarray(pixels), quantised / 4096)
    # The other three do nothing but a hue of no shift, whose HSV costs up to a level.
    assert error_of(ours, theirs) < 1.2


@pytest.mark.parametrize("factor", [0.6, 0.87, 1.0, 1.13, 1.4])
@pytest.mark.parametrize("name", THEIRS)
def test_a_factor_alone_is_within_a_fraction_of_a_level(name, factor):
    pixels = photograph()[:SIZE, :SIZE].copy()
    quantised = round(factor * 4096)
    change = dict(_ORDERS[0])[name]
    theirs = THEIRS[name](Image.fromarray(pixels), quantised / 4096)
    assert error_of(change(pixels, quantised), theirs) < 0.25


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.05, 0.1, 0.5])
def test_hue_turns_as_in_pillow(shift):
    pixels = photograph()[:SIZE, :SIZE].copy()
    ours = get_renderer("r0").colour(pixels, view_with(jitter=True, hue=round(shift * 4096)))
    theirs = functional.adjust_hue(Image.fromarray(pixels), shift)
    assert error_of(ours, theirs) < 2


def test_a_third_of_a_turn_makes_red_green():
    pixels = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    ours = get_renderer("r0").colour(pixels, view_with(jitter=True, hue=round(4096 / 3)))
    np.testing.assert_allclose(ours, np.broadcast_to((0, 200, 0), ours.shape), atol=6)


def test_grey_is_pillows():
    pixels = photograph()[:SIZE, :SIZE].copy()
    ours = get_renderer("r0").colour(pixels, view_with(grey=True))
    theirs = functional.to_grayscale(Image.fromarray(pixels), num_output_channels=3)
    assert error_of(ours, theirs) < 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.2, 2.0])
def test_blur_is_pillows_at_the_reference_size(sigma):
    pixels = photograph(240, 240)[:224, :224].copy()
    ours = get_renderer("r0").colour(pixels, view_with(sigma=round(sigma * 1024)))
    theirs = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))
    assert error_of(ours, theirs) < 1


def test_blur_scales_with_the_rendered_size():
    """A view of 112 is blurred with half the sigma of a view of 224."""
    pixels = photograph(120, 120)[:112, :112].copy()
    ours = get_renderer("r0").colour(pixels, view_with(sigma=2048))
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
    ours = get_renderer("r0").colour(pixels, view)
    theirs = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma))
    unlike = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma * 96 / 224))
    assert error_of(ours, theirs) < 0.2 * error_of(ours, unlike)


def test_changes_come_in_the_drawn_order():
    pixels = photograph()[:SIZE, :SIZE].copy()
    fields = {"brightness": 5700, "contrast": 2500, "saturation": 5700, "hue": 300}
    for order in (0, 9, 23):
        ours = get_renderer("r0").colour(pixels, view_with(jitter=True, order=order, **fields))
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
    np.testing.assert_array_equal(get_renderer("r0").colour(pixels, view_with()), pixels)


def test_colour_leaves_its_input_alone_and_gives_the_same_bits_again():
    pixels = photograph()[:SIZE, :SIZE].copy()
    before = pixels.copy()
    view = view_with(jitter=True, brightness=5000, hue=300, order=17, grey=True, sigma=1500)
    first = get_renderer("r0").colour(pixels, view)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(get_renderer("r0").colour(pixels, view), first)
    assert not np.array_equal(first, before)


def test_the_environment_names_what_the_bits_depend_on():
    environment = get_renderer("r0").environment()
    assert set(environment) == {"torch", "opencv", "cpu_capability"}
    assert all(environment.values())


def test_an_unknown_renderer_is_refused():
    with pytest.raises(ConfigError, match="no renderer `r9`") as error:
        get_renderer("r9")
    assert "r0" in error.value.hint
