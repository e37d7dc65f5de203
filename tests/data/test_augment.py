"""EDM's augmentation: closed forms in float64, and the distributions of its random numbers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from simjax.data import augment, warp
from simjax.errors import ConfigError


@pytest.fixture(autouse=True)
def float64():
    """Closed forms are compared in float64."""
    with jax.enable_x64(True):
        yield


RNG = np.random.default_rng(0)
ALL = augment.Pipe(**dict.fromkeys(augment.TRANSFORMATIONS, 1))
NOISE = RNG.uniform(-1, 1, (12, 12, 3))
EXACT = 1e-10  # the filter's coefficients have twelve digits

# Mean and mean square of each label at p = 1, for 8 x 8 pixels: the shift is -1, 0, 0 or 1 pixel.
COIN, NORMAL, THIRDS, ANGLE = (0.5, 0.5), (0, 1), (0, 0.5), [(-1, 1.5), (0, 0.5)]
MOMENTS = {
    "xflip": [COIN],
    "yflip": [COIN],
    "rotate_int": [COIN, COIN],
    "translate_int": [THIRDS, THIRDS],
    "scale": [NORMAL],
    "rotate_frac": ANGLE,
    "aniso": [(0, 0.75), (0, 0.25)],  # along x in one half of the cases
    "translate_frac": [NORMAL, NORMAL],
    "brightness": [NORMAL],
    "contrast": [NORMAL],
    "lumaflip": [COIN],
    "hue": ANGLE,
    "saturation": [NORMAL],
}
CHANCES = {"xflip": 0.5, "yflip": 0.5, "lumaflip": 0.5, "rotate_int": 0.75, "translate_int": 0.75}


@functools.partial(jax.jit, static_argnames=("p", "pipe"))
def run(images, keys, p, pipe):
    return augment.augment(images, keys, p=p, pipe=pipe)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def transform(image, **units):
    """The image and labels after these transformations with these unit numbers."""
    draws = {name: np.array([*value, 0.0]) for name, value in units.items()}
    pipe = augment.Pipe(**dict.fromkeys(units, 1))
    return jax.jit(lambda *given: augment.apply(*given, p=1, pipe=pipe))(image, draws)


def test_nothing_is_applied_at_p_zero():
    images = RNG.uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
    with jax.enable_x64(False):
        results, labels = run(images, keys(5), 0.0, augment.EDM)
        np.testing.assert_array_equal(results, images)
        np.testing.assert_array_equal(labels, np.zeros((5, 9)))
        results, labels = run(images, keys(5), 0.0, ALL)
    assert results.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(results, images, atol=1e-6)  # multiplied by the identity on colours
    np.testing.assert_array_equal(labels, np.zeros((5, 19)))


def test_edms_pipe_mirrors_half_of_all_images_however_small_p_is():
    images = RNG.normal(size=(64, 4, 4, 1))
    results, labels = run(images, keys(64), 1e-6, augment.EDM)
    flip = np.asarray(labels[:, 0])
    assert set(flip) == {0, 1}
    assert 20 < flip.sum() < 44  # 3 standard deviations
    np.testing.assert_array_equal(labels[:, 1:], 0)
    mirrored = np.where(flip[:, None, None, None] == 1, images[:, :, ::-1], images)
    np.testing.assert_array_equal(results, mirrored)


def test_a_result_depends_on_its_own_image_and_key_alone():
    images, streams = RNG.normal(size=(6, 8, 8, 3)), keys(6)
    order = np.array([4, 1, 5, 5, 0, 2])
    whole, part = (run(images[i], streams[i], 0.7, ALL) for i in (np.arange(6), order))
    for of_part, of_whole in zip(part, whole, strict=True):
        np.testing.assert_allclose(of_part, of_whole[order], atol=1e-12)
    assert len({tuple(row) for row in np.asarray(whole[1])}) == 6  # keys differ


def test_numbers_of_a_transformation_do_not_depend_on_which_others_are_enabled():
    alone, among = (augment.draw(jax.random.key(1), pipe) for pipe in (augment.Pipe(hue=1), ALL))
    np.testing.assert_array_equal(alone["hue"], among["hue"])
    assert len({float(gate) for *_, gate in among.values()}) == len(augment.TRANSFORMATIONS)


def test_a_disabled_transformation_is_absent_from_the_program():
    pipe = augment.Pipe(xflip=1)
    jaxpr = jax.make_jaxpr(lambda *given: augment.augment(*given, p=1, pipe=pipe))
    program = str(jaxpr(np.ones((2, 4, 4, 3)), keys(2)))
    assert not any(name in program for name in ("dot_general", "gather", "sin", "exp2"))
    results, labels = run(NOISE[None], keys(1), 1.0, augment.Pipe())
    np.testing.assert_array_equal(results, NOISE[None])
    assert labels.shape == (1, 0)


def test_labels_have_the_expected_order_and_moments():
    labels = np.asarray(run(np.ones((4096, 8, 8, 3), np.float32), keys(4096), 1.0, ALL)[1])
    expected = np.array([moments for name in augment.TRANSFORMATIONS for moments in MOMENTS[name]])
    measured = np.stack([labels.mean(0), np.square(labels).mean(0)], axis=1)
    np.testing.assert_allclose(measured, expected, atol=0.1)


def test_each_transformation_is_applied_with_its_probability():
    p, count = 0.3, 4096
    pipe = dataclasses.replace(ALL, hue=2)
    labels = run(np.ones((count, 8, 8, 3), np.float32), keys(count), p, pipe)[1]
    columns = np.cumsum([len(MOMENTS[name]) for name in augment.TRANSFORMATIONS])
    for name, of_name in zip(MOMENTS, np.split(labels, columns, axis=1)[:-1], strict=True):
        chance = getattr(pipe, name) * p * CHANCES.get(name, 1)
        assert abs(np.any(of_name != 0, axis=1).mean() - chance) < 0.03, name  # 4 deviations


# Pixels


@pytest.mark.parametrize(("name", "axis"), [("xflip", 1), ("yflip", 0)])
def test_flips(name, axis):
    flipped, labels = transform(NOISE, **{name: [1]})
    np.testing.assert_array_equal(flipped, np.flip(NOISE, axis))
    np.testing.assert_array_equal(transform(flipped, **{name: [1]})[0], NOISE)
    np.testing.assert_array_equal(labels, [1])


@pytest.mark.parametrize(("turns", "bits"), [(0, (0, 0)), (1, (1, 0)), (2, (1, 1)), (3, (0, 1))])
def test_quarter_turns(turns, bits):
    turned, labels = transform(NOISE, rotate_int=[turns])
    np.testing.assert_array_equal(turned, np.rot90(NOISE, turns))
    np.testing.assert_array_equal(labels, bits)


def test_shift_by_whole_pixels_continues_by_reflection():
    image = RNG.normal(size=(16, 16, 2))  # shifts by at most 2 pixels
    shifted, labels = transform(image, translate_int=[-0.9, 0.6])  # round(1.8) left, round(1.2) up
    expected = np.pad(image, ((0, 1), (0, 2), (0, 0)), mode="reflect")[1:, 2:]
    np.testing.assert_array_equal(shifted, expected)
    np.testing.assert_array_equal(labels, [-1, 0.5])


# Geometry


def test_the_filter_is_orthonormal_to_its_even_shifts_with_six_vanishing_moments():
    overlaps = np.correlate(warp.SYM6, warp.SYM6, "full")[1::2]
    np.testing.assert_allclose(overlaps, np.arange(11) == 5, atol=1e-11)
    signs = (-1.0) ** np.arange(12)
    moments = [np.sum(signs * warp.SYM6 * np.linspace(-1, 1, 12) ** k) for k in range(6)]
    np.testing.assert_allclose(moments, 0, atol=1e-11)


def test_resampling_with_the_identity_map_is_the_identity():
    affine = jax.jit(warp.affine)
    np.testing.assert_allclose(affine(NOISE, np.eye(3)), NOISE, atol=EXACT)
    with jax.enable_x64(False):
        single = NOISE.astype(np.float32)
        np.testing.assert_allclose(affine(single, np.eye(3, dtype="f4")), single, atol=2e-6)


def test_shift_by_a_fraction_that_is_whole_pixels_is_exact():
    image = RNG.normal(size=(16, 16, 2))
    shifted, labels = transform(image, translate_frac=[1.5, -1.0])  # 3 right, 2 up
    expected = np.pad(image, ((0, 2), (3, 0), (0, 0)), mode="reflect")[2:, :-3]
    np.testing.assert_allclose(shifted, expected, atol=EXACT)
    np.testing.assert_array_equal(labels, [1.5, -1])


def test_a_large_shift_shows_the_reflection_then_zeros():
    image = RNG.normal(size=(16, 16, 1))
    far, _ = transform(image, translate_frac=[8, 0])  # one width: 15 reflected columns and a zero
    np.testing.assert_allclose(
        far[:, 6:], image[:, 10:0:-1], atol=EXACT
    )  # the filter blurs its end
    assert np.abs(far[:, 0]).max() < np.abs(image[:, -1]).max()
    np.testing.assert_array_equal(transform(image, translate_frac=[0, 30])[0], 0)


# A smooth blob, right of and below the centre. The filter's centre is slightly off its pixel, and
# the map acts about that point. Bilinear sampling at half pixels errs by f'' / 32 in each axis.
FILTER_CENTRE = np.sum(np.arange(-5, 7) * warp.SYM6) / np.sqrt(2) / 2  # 0.049 pixels
BILINEAR = 2 / 4**2 / 32


def blob(position):
    return np.exp(-np.sum((position - [4, 2]) ** 2, axis=-1, keepdims=True) / (2 * 4**2))


POSITION = np.stack(np.meshgrid(np.arange(33) - 16.0, np.arange(33) - 16.0), axis=-1)  # x, y
BLOB = blob(POSITION)


def turn(angle):
    """From output to input, x right and y down: positive angles rotate anticlockwise."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def stretch(x, y):
    return np.diag([1 / x, 1 / y])


@pytest.mark.parametrize(
    ("units", "inverse", "labels"),
    [
        ({"scale": [2]}, stretch(2**0.4, 2**0.4), [2]),
        ({"scale": [-1]}, stretch(2**-0.2, 2**-0.2), [-1]),
        ({"rotate_frac": [0.3]}, turn(0.3 * np.pi), [np.cos(0.3 * np.pi) - 1, np.sin(0.3 * np.pi)]),
        ({"rotate_frac": [-0.5]}, turn(-np.pi / 2), [-1, -1]),
        ({"aniso": [2, 0.4, 0.1]}, stretch(2**0.4, 2**-0.4), [2, 0]),
        (
            {"aniso": [2, 0.4, -0.1]},
            turn(-0.4 * np.pi) @ stretch(2**0.4, 2**-0.4) @ turn(0.4 * np.pi),
            [2 * np.cos(0.4 * np.pi), 2 * np.sin(0.4 * np.pi)],
        ),
        (
            {"scale": [1], "rotate_frac": [0.2], "aniso": [1, 0, 1]},  # in this order
            stretch(2**0.2, 2**0.2) @ turn(0.2 * np.pi) @ stretch(2**0.2, 2**-0.2),
            [1, np.cos(0.2 * np.pi) - 1, np.sin(0.2 * np.pi), 1, 0],
        ),
    ],
)
def test_affine_maps_act_about_the_centre(units, inverse, labels):
    result, given_labels = transform(BLOB, **units)
    expected = blob((POSITION + FILTER_CENTRE) @ inverse.T - FILTER_CENTRE)
    inside = slice(8, -8)  # nearer to the edge there is reflection
    np.testing.assert_allclose(
        result[inside, inside], expected[inside, inside], atol=1.2 * BILINEAR
    )
    np.testing.assert_allclose(given_labels, labels, atol=1e-12)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_by_right_angles(turns):
    result, _ = transform(BLOB, rotate_frac=[turns / 2 - 2 * (turns > 2)])
    np.testing.assert_allclose(result, np.rot90(BLOB, turns), atol=0.02)  # see FILTER_CENTRE
    assert np.abs(BLOB - np.rot90(BLOB, turns)).max() > 0.3


def test_the_shift_is_applied_after_scaling():
    result, _ = transform(BLOB, scale=[2], translate_frac=[1, 0])  # 33 / 8 pixels to the right
    expected = blob((POSITION - [33 / 8, 0]) / 2**0.4)
    np.testing.assert_allclose(result[8:-8, 12:-8], expected[8:-8, 12:-8], atol=0.01)


# Colours


def test_contrast_multiplies_after_brightness_adds():
    result, labels = transform(NOISE, contrast=[-2], brightness=[0.5])
    np.testing.assert_allclose(result, (NOISE + 0.1) / 2, atol=1e-12)
    np.testing.assert_array_equal(labels, [0.5, -2])


def test_lumaflip_negates_grey_and_keeps_the_rest():
    grey = NOISE.mean(-1, keepdims=True)
    result, labels = transform(NOISE, lumaflip=[1])
    np.testing.assert_allclose(result, NOISE - 2 * grey, atol=1e-12)
    np.testing.assert_array_equal(labels, [1])


def test_hue_by_a_third_of_a_turn_permutes_the_channels():
    result, labels = transform(NOISE, hue=[2 / 3])
    np.testing.assert_allclose(result, np.roll(NOISE, 1, axis=-1), atol=1e-12)  # red to green
    np.testing.assert_allclose(labels, [-1.5, np.sqrt(0.75)])


def test_saturation_multiplies_the_distance_from_grey():
    grey = NOISE.mean(-1, keepdims=True)
    result, labels = transform(NOISE, saturation=[-2])
    np.testing.assert_allclose(result, grey + (NOISE - grey) / 4, atol=1e-12)
    np.testing.assert_array_equal(labels, [-2])


def test_hue_and_saturation_do_not_change_grey_images():
    grey = NOISE[..., :1]
    result, labels = transform(grey, lumaflip=[1], hue=[0.4], saturation=[1])
    np.testing.assert_allclose(result, -grey, atol=1e-12)
    assert labels.shape == (4,)


def test_colour_transformations_of_four_channels_are_refused():
    with pytest.raises(ConfigError, match="1 or 3 channels, these have 4; set"):
        transform(np.ones((4, 4, 4)), brightness=[1])
    assert transform(np.ones((4, 4, 4)), xflip=[1])[0].shape == (4, 4, 4)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(TypeCheckError):
        run(np.ones((2, 4, 6, 3)), keys(2), 1.0, augment.Pipe(xflip=1))
