"""A survey on exact denoisers of Gaussian data, where everything along the chain has a closed form."""

import json
from dataclasses import asdict, dataclass, replace

import pytest
import torch

from nearfar.diffusion.fixed_point import FixedPointDDIM
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import solve
from nearfar.domain import survey as module
from nearfar.domain.survey import climb, own_steps, propose, segments, survey, survey_calls
from nearfar.errors import ModelWarning, UsageError
from nearfar.models.model import FrozenModel, PixelSpace, Provenance
from nearfar.sampling.own_domain import own_domain
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

COUNT, SIDE, MEAN = 24, 8, 0.1
VARIANCE = torch.linspace(0.01, 0.06, SIDE).expand(1, 1, SIDE, SIDE)
SCHEDULE = NoiseSchedule.variance_preserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0))
STRENGTHS = (0.3, 0.6, 0.9)


@dataclass
class Counted:
    """The oracle, and how often it was asked."""

    denoiser: GaussianDenoiser
    calls: int = 0
    schedule: NoiseSchedule = SCHEDULE

    def __call__(self, x_t, t):
        self.calls += 1
        return self.denoiser(x_t, t)


@pytest.fixture
def model():
    return FrozenModel(
        denoiser=Counted(GaussianDenoiser(SCHEDULE, torch.tensor(MEAN), VARIANCE)),
        latent_space=PixelSpace(),
        image=ImageContract(SIDE, 1),
        latent_shape=(1, SIDE, SIDE),
        provenance=Provenance("oracle", "abc", ""),
        device=torch.device("cpu"),
        dtype=torch.float32,
        parameters=0,
    )


def images(seed=0, count=COUNT, shift=0.0, width=1.0):
    """Of the model's own domain, unless shifted or of another width."""
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return (MEAN + shift + width * VARIANCE.sqrt() * noise).clamp(-1, 1)


def trajectory(strength):
    """Along the exact trajectory a deviation from `alpha * mean` grows with its standard deviation: alpha, the gain."""
    time = SCHEDULE.time_of_strength(torch.tensor([strength], dtype=torch.float64))
    alpha, sigma = SCHEDULE.coefficients(time)
    return alpha, ((alpha**2 * VARIANCE + sigma**2) / VARIANCE).sqrt()


def test_mean_spread_and_spectrum_follow_the_exact_trajectory(model):
    unseen = images(shift=0.2, width=0.7)
    found = survey(model, unseen, own=images(1), strengths=(0.4, 0.9), steps=120)
    for level in found.levels:
        alpha, gain = trajectory(level.strength)
        expected = alpha * MEAN + gain * (unseen.double() - MEAN)
        shape = module.geometry(module.gram_matrix(expected), SIDE**2, torch.Generator())
        assert level.unseen.geometry.norm.mean == pytest.approx(shape.norm.mean, rel=0.03)
        assert level.unseen.geometry.squared_mean == pytest.approx(shape.squared_mean, rel=0.06)
        assert level.unseen.geometry.trace == pytest.approx(shape.trace, rel=0.06)
        spectrum = module.radial_spectrum(expected)
        for measured, exact in [
            (level.unseen.spectrum.variance, spectrum.variance),
            (level.unseen.spectrum.mean, spectrum.mean),
        ]:
            torch.testing.assert_close(torch.tensor(measured), torch.tensor(exact), rtol=0.07, atol=2e-3)


def test_the_own_domain_has_the_spread_of_the_forward_process(model):
    """Variance `alpha^2 lam + sigma^2` in every pixel, which is 1 at the noisy end."""
    found = survey(model, images(), own=images(1), strengths=(0.5, 1.0), steps=120)
    for level in found.levels:
        _, gain = trajectory(level.strength)
        assert level.own.geometry.trace == pytest.approx((gain**2 * VARIANCE).sum().item(), rel=0.1)
    assert found.levels[-1].own.geometry.roundness > 0.8
    assert found.levels[-1].own.geometry.trace == pytest.approx(SIDE**2, rel=0.1)


def test_few_steps_widen_both_clouds_alike(model):
    few, many = (survey(model, images(), own=images(1), strengths=(0.9,), steps=steps).levels[0] for steps in (10, 60))
    growth = [getattr(few, name).geometry.trace / getattr(many, name).geometry.trace for name in ("unseen", "own")]
    assert growth[0] == pytest.approx(growth[1], rel=0.02)
    assert 1.05 < growth[0] < 1.6


def test_the_own_domain_is_sampled_unless_given(model):
    own = own_domain(model, COUNT, seed=5)
    sampled, given = (survey(model, images(), own=own, strengths=(0.5,), seed=5) for own in (None, own))
    assert sampled == given


def test_another_mean_is_separable_and_the_own_domain_is_not(model):
    other = survey(model, images(1, shift=0.25), own=images(2), strengths=STRENGTHS)
    assert all(level.separable and level.verdict.startswith("separable") for level in other.levels)
    assert all(level.gaussian and "passes as Gaussian" in level.verdict for level in other.levels)
    assert other.proposed in STRENGTHS
    same = survey(model, images(1), own=images(2), strengths=STRENGTHS)
    assert not any(level.separable for level in same.levels)
    assert all(level.verdict.startswith("not separable") for level in same.levels)
    assert same.proposed is None
    assert same.reason.startswith("at no level are the clouds separable")


def test_a_mixture_of_scales_is_not_gaussian_and_still_gets_a_level(model):
    width = torch.linspace(-1, 1, COUNT).exp()[:, None, None, None] * 0.4
    found = survey(model, images(1, shift=0.3, width=width), own=images(2), strengths=STRENGTHS)
    assert not any(level.gaussian for level in found.levels)
    assert found.proposed in STRENGTHS
    assert "passes as Gaussian at none of these" in found.reason


def test_all_levels_lie_on_one_trajectory(model, monkeypatch):
    """What is seen at the last level is what an inversion to it alone, with the same nodes, gives."""
    monkeypatch.setattr(module, "INVERTER", FixedPointDDIM(iterations=40, tolerance=1e-5))
    climbing = climb(model, images(), segments(STRENGTHS, 6), batch_size=17)
    last = [latents.clone() for latents in climbing][-1]
    nodes = torch.unique(torch.cat(segments(STRENGTHS, 6)))
    grid = SCHEDULE.time_of_strength(nodes).expand(COUNT, -1)
    alone = solve(model.denoiser, images(), grid, module.INVERTER)
    torch.testing.assert_close(last, alone, rtol=0, atol=1e-4)


def test_every_level_is_a_node_and_the_parts_join():
    parts = segments(STRENGTHS, 10)
    assert [part[-1].item() for part in parts] == list(STRENGTHS)
    assert [part[0].item() for part in parts] == [0, *STRENGTHS[:-1]]
    assert all((part.diff() > 0).all() for part in parts)
    assert sum(len(part) - 1 for part in parts) == 10 + len(STRENGTHS) - 1  # the last level ends the grid as it is


@pytest.mark.parametrize("sampled", [True, False])
def test_it_costs_no_more_calls_than_it_says(model, sampled):
    steps = []
    own = None if sampled else images(1)
    survey(model, images(), own=own, strengths=STRENGTHS, batch_size=20, on_step=lambda n, _: steps.append(n))
    most = survey_calls(COUNT, STRENGTHS, batch=20)
    assert most / 8 < model.denoiser.calls <= most
    nodes = sum(len(part) - 1 for part in segments(STRENGTHS, module.STEPS))
    assert len(steps) == 4 * nodes + 2 * 20 * sampled


def test_the_way_of_the_own_samples_is_made_once(model, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path))
    calls, found = [], []
    for _ in range(2):
        before, steps = model.denoiser.calls, own_steps(model, COUNT, STRENGTHS, 20, 0, 32)
        found.append(survey(model, images(), strengths=STRENGTHS))
        calls.append((model.denoiser.calls - before, steps))
    assert found[0] == found[1]
    (first, told), (second, none) = calls
    assert second < first / 2
    assert (told, none) == (20 + sum(len(part) - 1 for part in segments(STRENGTHS, 20)), 0)
    assert len(list(tmp_path.glob("own-climb-*"))) == 1


def test_the_way_of_very_many_own_samples_is_not_kept(model, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path))
    kept = survey(model, images(), strengths=(0.5,))
    monkeypatch.setattr(module, "MOST_KEPT", 0)
    assert survey(model, images(), strengths=(0.5,), seed=0) == kept
    assert len(list(tmp_path.glob("own-climb-*"))) == 1


def test_it_is_repeatable_and_ready_for_json(model):
    one, same = (survey(model, images(), strengths=(0.5,), seed=3) for _ in range(2))
    text = json.dumps(asdict(one))
    assert text == json.dumps(asdict(same))
    assert json.loads(text)["levels"][0]["separation"]["accuracy"] == one.levels[0].separation.accuracy
    assert (one.model, one.count, one.seed, one.levels[0].time) == ("abc", COUNT, 3, 499.0)


@pytest.fixture(scope="module")
def level():
    oracle = FrozenModel(
        GaussianDenoiser(SCHEDULE, torch.tensor(MEAN), VARIANCE), PixelSpace(), ImageContract(SIDE, 1),
        (1, SIDE, SIDE), Provenance("oracle", "abc", ""), torch.device("cpu"), torch.float32, 0,
    )  # fmt: skip
    return survey(oracle, images(shift=0.3), own=images(1), strengths=(0.5,)).levels[0]


def like(level, strength, roundness, separable=True, gaussian=True):
    shape = replace(level.unseen.geometry, roundness=roundness)
    unseen = replace(level.unseen, geometry=shape)
    return replace(level, strength=strength, separable=separable, gaussian=gaussian, unseen=unseen)


def test_the_lowest_settled_level_is_proposed(level):
    rising = [like(level, strength, r) for strength, r in [(0.2, 0.1), (0.4, 0.55), (0.6, 0.6), (0.8, 0.6)]]
    assert propose(rising)[0] == 0.4
    assert propose(rising)[1].startswith("0.4 is the lowest level")
    assert propose(rising)[1].endswith("that passes as Gaussian")
    uneven = [rising[0], replace(rising[1], gaussian=False), *rising[2:]]
    assert propose(uneven)[0] == 0.6
    nowhere = [rising[0], *(replace(one, gaussian=False) for one in rising[1:])]
    assert propose(nowhere)[0] == 0.4
    assert propose(nowhere)[1].endswith("mixtures of latents are safer than draws")


def test_nothing_is_proposed_where_clouds_mix_or_are_still_changing(level):
    rising = [like(level, strength, r) for strength, r in [(0.2, 0.1), (0.3, 0.2), (0.6, 0.6), (0.8, 0.6)]]
    early = [*rising[:2], *(replace(one, separable=False) for one in rising[2:])]
    assert propose(early)[0] is None
    assert "only where the unseen one has no settled shape yet, at 0.2, 0.3" in propose(early)[1]
    assert propose([replace(one, separable=False) for one in rising])[0] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": images(count=7)}, "a survey needs at least 8 different images, got 7: add some"),
        (
            {"images": images(count=1).expand(9, -1, -1, -1)},
            "a survey needs at least 8 different images, got 1 among 9: add some",
        ),
        ({"strengths": (0.5, 0.3)}, r"strengths must ascend in (0, 1], got 0.5, 0.3"),
        ({"strengths": (0.0, 0.3)}, r"strengths must ascend in (0, 1], got 0.0, 0.3"),
        ({"strengths": (0.3, 1.2)}, r"strengths must ascend in (0, 1], got 0.3, 1.2"),
        ({"strengths": ()}, r"strengths must ascend in (0, 1], got none"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"own": images(count=9)}, "own must hold as many images as the domain, 24, got 9: leave it out"),
        ({"images": images() * float("nan")}, "images must lie in [-1, 1], got values from nan to nan"),
    ],
)
def test_what_cannot_be_surveyed_is_refused_before_the_work(model, options, message):
    given = {"images": images(), **options}
    with pytest.raises(UsageError) as error:
        survey(model, given.pop("images"), **given)
    assert str(error.value).startswith(message)
    assert model.denoiser.calls == 0


def test_copies_are_warned_of(model):
    twice = torch.cat([images(count=10), images(count=2)])
    with pytest.warns(ModelWarning, match="2 of 12 images are copies of others"):
        survey(model, twice, own=images(1), strengths=(0.5,))
