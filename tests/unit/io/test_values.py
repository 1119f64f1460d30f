"""Value transforms: reversible to a millionth of the range, what they clip, gray and color, and every refusal."""

import json
import math

import astropy.visualization
import jaxtyping
import numpy as np
import pytest
import torch
from astropy.stats import mad_std
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ImageError, UsageError
from nearfar.io.values import CURVES, ValueTransform, fit_values

RNG = np.random.default_rng(5)
COLORS = RNG.lognormal(0, 3, (3, 8, 9)) * [[[1.0]], [[1e4]], [[1e-6]]]
each_curve = pytest.mark.parametrize("curve", CURVES)


@pytest.fixture
def unchecked_shapes(monkeypatch):
    """What a user meets, whose calls nobody checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def gray(low=0.0, high=10.0, curve="linear", softening=1.0):
    return ValueTransform(curve, (low,), (high,), (softening,))


def lost(transform, values):
    """The greatest error of the round trip, as a share of each channel's range."""
    spans = np.subtract(transform.high, transform.low)[:, None, None]
    return float((np.abs(transform.to_values(transform.to_image(values)) - values) / spans).max())


# There and back


@each_curve
def test_measured_data_come_back_within_a_millionth_of_their_range(curve):
    assert lost(fit_values([COLORS], curve), COLORS) < 1e-6


@each_curve
def test_measured_ends_become_the_ends_of_the_image(curve):
    image = fit_values([COLORS], curve).to_image(COLORS)
    assert image.dtype == torch.float32
    assert image.shape == COLORS.shape
    assert image.amin((1, 2)).tolist() == [-1, -1, -1]
    assert image.amax((1, 2)).tolist() == [1, 1, 1]


@st.composite
def settings_of_transforms(draw):
    """Ranges from a millionth of their offset to 20 decades, of either sign where the curve allows it."""
    curve = draw(st.sampled_from(list(CURVES)))
    low = 10 ** draw(st.floats(-10, 5))
    if curve in ("linear", "asinh"):
        low *= draw(st.sampled_from([-1.0, 0.0, 1.0]))
    high = low + (abs(low) or 1.0) * 10 ** draw(st.floats(-6, 15))
    return low, high, curve, 10 ** draw(st.floats(-5, 5))


@given(settings_of_transforms(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_any_value_of_any_range_comes_back_within_a_millionth_of_it(settings, shares):
    transform = gray(*settings)
    values = np.array(shares)[None, None] * (transform.high[0] - transform.low[0]) + transform.low[0]
    image = transform.to_image(values)
    assert image.abs().max() <= 1
    assert lost(transform, values) < 1e-6


def test_25_decades_are_as_many_as_are_promised():
    values = np.logspace(-15, 10, 4096).reshape(1, 64, 64)
    assert lost(gray(values.min(), values.max(), "log"), values) < 1e-6
    assert lost(gray(0.0, values.max(), "asinh", softening=1e-15), values) < 1e-6


def test_a_narrow_range_at_a_great_offset_stays_in_the_image():
    values = np.linspace(1e6, 1e6 + 0.02, 1000).reshape(1, 10, 100)
    transform = fit_values([values], "log")
    assert transform.to_image(values).abs().max() <= 1
    assert lost(transform, values) < 1e-6


def test_float32_images_come_back_from_their_values():
    images = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    transform = ValueTransform("asinh", (-1.0, 0.0, 3.0), (5.0, 1e3, 4.0), (0.1, 1.0, 10.0))
    torch.testing.assert_close(transform.to_image(transform.to_values(images)), images, rtol=0, atol=3e-6)


# The curves


def test_curves_follow_their_formulas():
    """Linear and asinh as astropy has them (its stretches map [0, 1] to [0, 1]), log in decades."""
    shares = np.linspace(0, 1, 50).reshape(1, 5, 10)
    asinh = astropy.visualization.AsinhStretch(a=0.1)(shares)
    np.testing.assert_allclose(gray(0.0, 20.0, "asinh", 2.0).to_image(shares * 20)[0], 2 * asinh[0] - 1, atol=1e-6)
    np.testing.assert_allclose(gray(-3.0, 7.0).to_image(shares * 10 - 3)[0], 2 * shares[0] - 1, atol=1e-6)
    decades = gray(1e-4, 1e4, "log").to_image(np.array([[[1e-4, 1e-2, 1.0, 1e2, 1e4]]]))
    np.testing.assert_allclose(decades[0, 0], [-1, -0.5, 0, 0.5, 1], atol=1e-6)


@pytest.mark.parametrize("curve", ["linear", "log"])
def test_only_asinh_depends_on_the_softening(curve):
    values = COLORS[:1]
    ends = (values.min(), values.max(), curve)
    torch.testing.assert_close(gray(*ends, 1.0).to_image(values), gray(*ends, 30.0).to_image(values))


def test_asinh_is_softened_at_the_noise_of_each_channel():
    measured = fit_values([COLORS], "asinh").softening
    np.testing.assert_allclose(measured, [mad_std(plane) for plane in COLORS], rtol=1e-3)
    assert fit_values([COLORS], "asinh", softening=[1.0, 2.0, 3.0]).softening == (1.0, 2.0, 3.0)


# Clipping


def test_values_beyond_the_ends_are_clipped():
    values = np.array([[[-1.0, 0.0, 5.0, 10.0, 11.0, 12.0, 3.0, 4.0]]])
    image = gray().to_image(values)
    assert image[0, 0].tolist() == pytest.approx([-1, -1, 0, 1, 1, 1, -0.4, -0.2])


def test_log_clips_what_has_no_logarithm():
    assert gray(1.0, 100.0, "log").to_image(np.array([[[-5.0, 0.0, 10.0]]]))[0, 0].tolist() == [-1, -1, 0]


def test_fitted_clip_is_the_share_that_is_clipped_at_either_end():
    arrays = list(RNG.normal(size=(5, 1, 40, 50)))
    transform = fit_values(arrays, clip=0.02)
    assert (transform.low[0], transform.high[0]) == tuple(np.quantile(np.concatenate(arrays), (0.02, 0.98)))
    beyond = (np.stack(arrays) < transform.low[0]) | (np.stack(arrays) > transform.high[0])
    assert beyond.mean() == pytest.approx(0.04, abs=1e-3)


def test_images_beyond_the_range_become_the_ends():
    assert gray(1.0, 9.0, "log").to_values(torch.tensor([[[-3.0, 7.0]]])).tolist() == [[[1, 9]]]


@each_curve
def test_values_never_leave_the_ends(curve):
    transform = fit_values([COLORS], curve)
    values = transform.to_values(torch.tensor([-1.0, 1.0]).expand(3, 1, 2))
    assert (values[..., 0] >= np.array(transform.low)[:, None]).all()
    assert (values[..., 1] <= np.array(transform.high)[:, None]).all()


# Shapes and channels


def test_arrays_of_any_size_are_fitted_together_and_a_batch_is_transformed_like_its_images():
    small, large = RNG.uniform(0, 1, (2, 3, 4)), RNG.uniform(-1, 2, (2, 6, 5))
    transform = fit_values([small, large])
    assert transform.low == tuple(large.min((1, 2)))
    batch = RNG.uniform(0, 1, (5, 2, 3, 4))
    images = transform.to_image(batch)
    assert images.shape == (5, 2, 3, 4)
    for image, values in zip(images, batch, strict=True):
        assert torch.equal(image, transform.to_image(values))
    np.testing.assert_array_equal(transform.to_values(images)[3], transform.to_values(images[3]))


def test_gray_data_are_repeated_for_a_color_model_and_averaged_back():
    values = RNG.uniform(0, 10, (2, 1, 4, 5))
    images = gray().to_image(values, channels=3)
    assert images.shape == (2, 3, 4, 5)
    assert torch.equal(images, gray().to_image(values).expand(2, 3, 4, 5))
    assert np.abs(gray().to_values(images) - values).max() < 1e-5
    colored = torch.tensor([0.1, 0.3, -0.1])[:, None, None].expand(3, 2, 2)
    np.testing.assert_allclose(gray().to_values(colored), np.full((1, 2, 2), 5.5), rtol=1e-7)


def test_half_precision_and_gradients_do_not_matter():
    images = torch.tensor([[[0.5]]], dtype=torch.bfloat16, requires_grad=True)
    values = gray().to_values(images)
    assert values.dtype == np.float64
    assert values.item() == 7.5


@pytest.mark.parametrize(("data", "model"), [(3, 1), (4, 3), (3, 4), (1, 0)])
def test_other_channels_than_the_models_are_refused(data, model):
    transform = ValueTransform("linear", (0.0,) * data, (1.0,) * data, (1.0,) * data)
    with pytest.raises(UsageError, match=rf"^data of {data} channels need a model of {data}, got {model}: use"):
        transform.to_image(np.zeros((data, 2, 2)), channels=model)
    with pytest.raises(UsageError, match=rf"^data of {data} channels need a model of {data}, got {model}: use"):
        transform.to_values(torch.zeros(model, 2, 2))


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (4,), (5, 3, 4, 4)])
def test_values_of_another_shape_are_refused(unchecked_shapes, shape):
    with pytest.raises(UsageError, match=r"^values must be \(1, height, width\), or a batch of it, got \("):
        gray().to_image(np.zeros(shape))


# As JSON


@each_curve
def test_json_gives_the_very_same_transform_back(curve):
    transform = fit_values([COLORS], curve, clip=0.01)
    assert ValueTransform.from_json(transform.to_json()) == transform
    assert json.loads(transform.to_json())["curve"] == curve


def test_json_may_write_floats_as_integers():
    text = '{"curve": "linear", "low": [0], "high": [10], "softening": [1]}'
    assert ValueTransform.from_json(text) == gray()


GOOD = {"curve": "linear", "low": [0.0], "high": [1.0], "softening": [1.0]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gamma": 2}, r"^a value transform is wrong at gamma \(Unexpected keyword argument\): fit it again$"),
        ({"curve": "cubic"}, r"^curve must be one of linear, log, log1p, asinh, got 'cubic'$"),
        ({"curve": ["log"]}, r"^a value transform is wrong at curve \(Input should be a valid string\): fit it again$"),
        ({"low": 0.0}, r"^a value transform is wrong at low \(Input should be a valid array\): fit it again$"),
        ({"low": ["0"]}, r"^a value transform is wrong at low\.0 \(Input should be a valid number\): fit it again$"),
        ({"high": [True]}, r"wrong at high\.0 \(Input should be a valid number\)"),
        ({"softening": [None]}, r"wrong at softening\.0 \(Input should be a valid number\)"),
        ({"high": [1, 2]}, r"^low, high and softening must have one number for each channel, got \[1, 2, 1\]$"),
        ({"low": [], "high": [], "softening": []}, r"one number for each channel, got \[0, 0, 0\]$"),
        ({"high": [math.nan]}, r"^a value transform is not valid JSON \(NaN is no number of JSON\): fit it again$"),
        ({"high": [10**400]}, r"^a value transform is not valid JSON \(a number beyond 64 bits\): fit it again$"),
        ({"low": [2]}, r"^channel 0: low must be below high and both finite, got 2 and 1$"),
        ({"softening": [0]}, r"^channel 0: softening must be above 0 and finite, got 0: give the data's noise$"),
        ({"softening": [math.inf]}, r"\(Infinity is no number of JSON\)"),
        ({"curve": "log"}, r"^channel 0 goes down to 0, 'log' needs values above 0: use 'asinh' or clip more$"),
    ],
)
def test_json_with_bad_values_is_refused(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        ValueTransform.from_json(json.dumps(GOOD | changes))


def test_json_with_a_missing_key_is_refused():
    with pytest.raises(UsageError, match=r"wrong at softening .Field required.: fit it again$"):
        ValueTransform.from_json(json.dumps({key: GOOD[key] for key in ("curve", "low", "high")}))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(
        UsageError, match=r"^a value transform (must be a JSON object, got|is not valid JSON \().*: fit it again$"
    ):
        ValueTransform.from_json(text)


# Refused data


def test_data_that_are_not_finite_are_refused():
    for wrong in (math.nan, math.inf, -math.inf):
        values = np.ones((1, 3, 3))
        values[0, :2, 1] = wrong
        with pytest.raises(ImageError, match=r"^array 1 has 2 values that are not finite: fill them in or crop them"):
            fit_values([np.zeros((1, 2, 2)), values])
        with pytest.raises(ImageError, match=r"^the array has 2 values that are not finite"):
            gray().to_image(values)
        with pytest.raises(ImageError, match=r"^the model's image has 2 values that are not finite"):
            gray().to_values(torch.from_numpy(values))


@each_curve
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_constant_channel_is_refused(curve, clip):
    values = RNG.uniform(1, 2, (2, 10, 10))
    values[1] = 7
    values[1, 0, 0] = 7 + clip
    sentence = rf"^channel 1 is 7 throughout at clip {clip:g}: clip less or give varied data$"
    with pytest.raises(UsageError, match=sentence):
        fit_values([values], curve, clip)


@pytest.mark.parametrize("lowest", [0.0, -2.5])
def test_values_without_a_logarithm_are_refused_unless_they_are_clipped(lowest):
    values = RNG.uniform(1, 2, (1, 10, 10))
    values[0, 0, 0] = lowest
    sentence = rf"^channel 0 goes down to {lowest:g}, 'log' needs values above 0: use 'asinh' or clip more$"
    with pytest.raises(UsageError, match=sentence):
        fit_values([values], "log")
    assert fit_values([values], "log", clip=0.02).low[0] >= 1
    assert lost(fit_values([values], "asinh"), values) < 1e-6


def test_a_channel_without_measurable_noise_asks_for_its_softening():
    values = np.zeros((1, 10, 10))
    values[0, :3] = RNG.uniform(1, 2, (3, 10))
    with pytest.raises(UsageError, match=r"^channel 0: softening must be above 0 and finite, got 0: give the data's"):
        fit_values([values], "asinh")
    assert lost(fit_values([values], "asinh", softening=[0.1]), values) < 1e-6


@pytest.mark.parametrize(
    ("low", "high", "curve", "softening"),
    [
        (1e12, 1e12 + 100, "linear", 1.0),
        (1e6, 1e6 + 1e-3, "log", 1.0),
        (-1.7e308, 1.7e308, "linear", 1.0),
        (1.0, 2.0, "asinh", 1e-310),
    ],
)
def test_a_range_that_float64_cannot_resolve_is_refused(low, high, curve, softening):
    with pytest.raises(UsageError, match=r"^channel 0: .* is too narrow or too wide: subtract an offset or rescale$"):
        gray(low, high, curve, softening)


@pytest.mark.parametrize("clip", [-0.1, 0.5, math.nan])
def test_a_clip_that_leaves_nothing_is_refused(clip):
    with pytest.raises(UsageError, match=rf"^clip must be a share in \[0, 0\.5\), got {clip:g}$"):
        fit_values([COLORS], clip=clip)


@pytest.mark.parametrize("arrays", [[], [np.zeros((1, 2, 2)), np.zeros((3, 2, 2))]], ids=["none", "mixed"])
def test_arrays_without_common_channels_are_refused(arrays):
    with pytest.raises(UsageError, match=r"^arrays must have the same channels, got the shapes"):
        fit_values(arrays)


def test_an_unknown_curve_is_refused():
    for make in (lambda: fit_values([COLORS], "sqrt"), lambda: gray(curve="sqrt")):
        with pytest.raises(UsageError, match=r"^curve must be one of linear, log, log1p, asinh, got 'sqrt'$"):
            make()


def test_the_logarithm_of_one_and_a_value_takes_all_above_minus_the_softening():
    image = gray(-0.5, 3.0, "log1p", 1.0).to_image(np.array([[[-0.5, 0.0, 1.0, 3.0]]]))[0, 0]
    logarithms = np.log(np.array([0.5, 1.0, 2.0, 4.0]))
    shares = (logarithms - logarithms[0]) / (logarithms[-1] - logarithms[0])
    np.testing.assert_allclose(image, 2 * shares - 1, atol=1e-6)
    with pytest.raises(UsageError, match="needs values above -2"):
        gray(-2.5, 3.0, "log1p", 2.0)
