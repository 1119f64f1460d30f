"""New images of domains of an exact model: where they begin, that they are each their own, and closed forms of the end.

What a denoiser's batch could change is tried on the tiny network.
"""

import math
from dataclasses import replace

import jaxtyping
import pytest
import torch

from nearfar.diffusion.noise import NoiseStream, SecretKey
from nearfar.diffusion.schedule import WARP
from nearfar.diffusion.solver import SOLVERS, solve
from nearfar.domain import synthesis as starting
from nearfar.domain.synthesis import (
    FAMILIES,
    GEOMETRIES,
    MIXTURES,
    SPREADS,
    drawing,
    generator_of,
    projected,
    steer,
    synthesize,
    synthesizer,
    vary,
)
from nearfar.errors import UsageError
from nearfar.latents.covariance import Scalar, shrunk_mean
from nearfar.latents.mixtures import neighbors
from nearfar.latents.shell import Shell, Target, Targets
from nearfar.latents.statistics import gram_matrix
from nearfar.sampling.inversion import reconstruct
from oracle_domains import COUNT, MEAN, SCHEDULE, VARIANCE, fit, fitted, oracle, own, unseen

each_family = pytest.mark.parametrize("family", [*MIXTURES, *SPREADS])  # presets ask for a domain of their own
ALL_PASS = Targets(*[Target(60.0, math.inf)] * 3)
NONE_PASSES = Targets(*[Target(-1.0, 0.0)] * 3)


@pytest.fixture(scope="module")
def network_domain(model):
    """A domain of the tiny network, 3x16x16; few images, little noise: it is random and inverts badly."""
    images = torch.nn.functional.interpolate(unseen(), scale_factor=2)
    return fit(model, images, own=images.flip(0, 2), strength=0.3, steps=4)


# Each output is its own


def test_an_output_depends_on_its_number_alone(model, network_domain):
    options = {"eta": 0.5, "pull": 0.3, "seed": 3}
    five = synthesize(model, network_domain, 5, **options)
    for other in (
        synthesize(model, network_domain, 5, batch_size=2, **options),
        synthesize(model, network_domain, 5, batch_size=1, **options),
    ):
        torch.testing.assert_close(other.images, five.images, rtol=0, atol=1e-5)
        assert other.numbers == five.numbers == (0, 1, 2, 3, 4)
    part = synthesize(model, network_domain, 2, first=3, **options)
    torch.testing.assert_close(part.images, five.images[3:], rtol=0, atol=1e-5)
    assert part.numbers == (3, 4)
    assert all(torch.equal(one.latent, two.latent) for one, two in zip(part.starts, five.starts[3:], strict=True))
    assert min((a - b).abs().max() for n, a in enumerate(five.images) for b in five.images[:n]) > 0.01


def test_seeds_differ_and_repeat():
    one, same, other = (synthesize(oracle(), fitted(), 3, seed=seed).images for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().amax((1, 2, 3)).min() > 0.01


def test_no_two_outputs_of_a_run_share_their_randomness():
    seeds = {generator_of(7, number).initial_seed() for number in range(2000)}
    assert len(seeds) == 2000
    assert not seeds & {generator_of(8, number).initial_seed() for number in range(2000)}
    neighbors = torch.stack([torch.randn(4000, generator=generator_of(7, number)) for number in range(8)])
    off_diagonal = torch.corrcoef(neighbors) - torch.eye(8)
    assert off_diagonal.abs().max() < 5 / 4000**0.5


# Families and geometries


@each_family
def test_every_family_makes_images_and_says_what_of(family):
    made = synthesize(oracle(), fitted(), 3, family=family)
    assert made.images.shape == (3, 3, 8, 8)
    assert made.images.dtype == torch.float32
    assert made.images.isfinite().all()
    assert made.images.abs().max() <= 1
    parents = {"mosaic": 3, "parents": 3, "sphere": 2}.get(family, 0)
    assert [len(set(start.parents.tolist())) for start in made.starts] == [parents] * 3
    assert made.acceptance == 1


def test_options_reach_the_mixture():
    mixed = synthesize(oracle(), fitted(), 2, parents=5, reach=0.3, sharpness=1.0)
    assert [len(start.parents) for start in mixed.starts] == [5, 5]
    single = synthesize(oracle(), fitted(), 2, family="parents", parents=1)
    for start in single.starts:
        torch.testing.assert_close(start.latent, fitted().latents[start.parents[0]])


def test_the_domains_own_mixing_is_meant_unless_told_otherwise():
    domain = replace(fitted(), mixing={"parents": 4})
    for options, parents in ({}, 4), ({"parents": 2}, 2), ({"reach": 0.3}, 4):
        assert len(synthesize(oracle(), domain, 1, **options).starts[0].parents) == parents
    assert len(synthesize(oracle(), domain, 1, family="parents").starts[0].parents) == 3


@each_family
def test_projected_starts_pass_the_three_tests_in_expectation(family):
    """Mean squared distance and mean products to the fitted latents are those of these to each other."""
    domain = fitted()
    shell, free = Shell.fit(domain.latents), drawing(domain, family)
    gram, pairs = gram_matrix(domain.latents), ~torch.eye(COUNT, dtype=torch.bool)
    lengths = gram.diagonal()
    among = (lengths[:, None] + lengths - 2 * gram)[pairs].mean()
    for number in range(3):
        start = projected(free, domain)(generator_of(0, number))
        drawn = free(generator_of(0, number))
        torch.testing.assert_close(start.latent, shell.project(drawn.latent[None])[0])
        assert torch.equal(start.parents, drawn.parents)
        away = (start.latent - domain.latents).double().flatten(1).square().sum(1).mean()
        assert away.item() == pytest.approx(among.item(), rel=1e-4)
        products = (start.latent * domain.latents).double().flatten(1).sum(1).mean()
        assert products.item() == pytest.approx(gram[pairs].mean().item(), rel=1e-3)


def counted(drawn):
    """Draws, and how many there were."""
    calls = []

    def draw(generator):
        calls.append(generator)
        return drawn(generator)

    return draw, calls


def test_tested_starts_are_the_first_draws_that_pass():
    domain = fitted()
    draw, calls = counted(drawing(domain, "scalar"))
    found = [starting.tested(draw, domain)(generator_of(2, number)) for number in range(40)]
    attempts = [start.attempts for start in found]
    assert sum(attempts) == len(calls)
    assert set(attempts) > {1}  # some draws failed, and many did not
    made = synthesize(oracle(), domain, 40, family="scalar", geometry="tested", seed=2)
    assert [start.attempts for start in made.starts] == attempts
    assert made.acceptance == 40 / sum(attempts)
    free = synthesize(oracle(), domain, 40, family="scalar", seed=2)
    same = [torch.equal(one.latent, two.latent) for one, two in zip(made.starts, free.starts, strict=True)]
    assert same == [number == 1 for number in attempts]


def test_tests_that_all_pass_accept_everything():
    made = synthesize(oracle(), replace(fitted(), targets=ALL_PASS), 4, geometry="tested")
    assert made.acceptance == 1


def test_tests_that_none_passes_end_in_a_sentence_before_any_network_call(monkeypatch):
    monkeypatch.setattr(starting, "MOST_ATTEMPTS", 30)
    model = oracle()
    sentence = "none of 30 draws passed the three tests: use the projection or free draws"
    with pytest.raises(UsageError, match=sentence):
        synthesize(model, replace(fitted(), targets=NONE_PASSES), 1, geometry="tested")
    assert model.denoiser.calls == 0


# The way down


def exact_return(domain, latents):
    """Where the deterministic trajectory of the oracle leads from latents at the domain's level."""
    alpha, sigma = SCHEDULE.coefficients(SCHEDULE.time_of_strength(torch.tensor([domain.strength]).double()))
    gain = (VARIANCE / (alpha**2 * VARIANCE + sigma**2)).sqrt()
    return MEAN + gain * (latents - alpha * MEAN), gain


def test_scalar_draws_end_with_the_mean_and_the_variance_of_the_closed_form(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    domain, count = fitted(steps=200), 1500
    made = synthesize(oracle(), domain, count, family="scalar", pull=0.0, batch_size=count)
    latents = torch.stack([start.latent for start in made.starts])
    expected, gain = exact_return(domain, latents)
    unclipped = expected.abs() < 0.95
    assert ((made.images - expected).abs() <= 0.02 * (expected - MEAN).abs() + 1e-4)[unclipped].all()
    assert unclipped.double().mean() > 0.98
    center, kept = shrunk_mean(domain.latents)
    variance = gain**2 * Scalar.fit(domain.latents).variance * (1 - kept / COUNT)
    mean, _ = exact_return(domain, center)
    # 1500 draws of each of 192 numbers: deviations sqrt(v / 1500) and v sqrt(2 / 1500).
    assert ((expected.mean(0) - mean) / (variance / count).sqrt()).abs().max() < 4.5
    assert (expected.var(0) / variance - 1).abs().max() < 4.5 * (2 / count) ** 0.5


def by_hand(domain, made, solver, seed):
    key = SecretKey.from_seed(seed)
    noise = NoiseStream([bytes.fromhex(key.tag(f"synthesis {number}")) for number in made.numbers], (3, 8, 8))
    start = SCHEDULE.time_of_strength(torch.full((len(made.numbers),), domain.strength, dtype=torch.float64))
    latents = torch.stack([start.latent for start in made.starts])
    return solve(oracle().denoiser, latents, SCHEDULE.grid(start, domain.steps, WARP), solver, noise).clamp(-1, 1)


@pytest.mark.parametrize(("eta", "solver"), [(0.0, "ddim"), (1.0, "ancestral")])
def test_eta_leads_from_the_papers_way_to_the_ancestral_one(eta, solver):
    made = synthesize(oracle(), fitted(), 4, pull=0.0, eta=eta, seed=6)
    assert torch.equal(made.images, by_hand(fitted(), made, SOLVERS[solver], 6))
    assert not torch.equal(made.images, synthesize(oracle(), fitted(), 4, pull=0.0, eta=0.3, seed=6).images)


def test_pull_leads_away_from_the_models_own_domain():
    """Draws of the model's own spread, on the way to it or to the domain: the means of what comes out."""
    own_mean, mean = own().mean().item(), unseen().mean().item()
    latents = fitted().latents
    strange = replace(fitted(), latents=latents - latents.mean(0) + own_mean)
    ends = [synthesize(oracle(), strange, 32, pull=weight).images.mean().item() for weight in (0.0, 0.5, 1.0)]
    assert own_mean - 0.1 < ends[0]
    assert ends[0] - 0.05 > ends[1] > ends[2] + 0.05
    assert ends[2] > mean - 0.1


def test_the_cost_is_the_domains_steps_for_each_batch():
    model, steps = oracle(), []
    synthesize(model, fitted(steps=4), 5, batch_size=2, on_step=lambda number, state: steps.append(number))
    assert model.denoiser.calls == 12
    assert steps == [1, 2, 3, 4] * 3


# Variations


def test_amount_0_gives_the_image_back():
    image = unseen(1, seed=8)
    made = vary(oracle(), fitted(), image[0], 3, amount=0.0)
    again = reconstruct(oracle(), image, strength=0.5)
    torch.testing.assert_close(made, again.expand(3, -1, -1, -1), rtol=0, atol=1e-6)
    assert (made - image).abs().max() < 0.01


def test_amount_1_forgets_the_image_and_is_synthesis():
    one, other = (vary(oracle(), fitted(), unseen(1, seed=seed)[0], 3, amount=1.0, seed=4) for seed in (8, 9))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    torch.testing.assert_close(one, synthesize(oracle(), fitted(), 3, seed=4).images, rtol=0, atol=1e-5)


def test_the_more_the_farther():
    image = unseen(1, seed=8)[0]
    made = [vary(oracle(), fitted(), image, 8, amount=amount) for amount in (0.0, 0.2, 0.5, 0.8, 1.0)]
    away = [(some - image).square().mean().item() for some in made]
    assert away == sorted(away)
    assert (made[2][:, None] - made[2][None]).abs().amax((2, 3, 4)).fill_diagonal_(1).min() > 0.01  # all differ


def test_a_steered_latent_keeps_mean_and_covariance():
    """Linear in latent, deviation and mean: squared shares of latent and deviation add up to 1, and 1 mean is kept."""
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    for amount in (0.0, 0.3, 0.7, 1.0):
        of_latent, of_deviation = steer(one, zero, zero, amount), steer(zero, one, zero, amount)
        assert (of_latent**2 + of_deviation**2).item() == pytest.approx(1)
        assert of_deviation.item() == amount
        assert steer(one, zero, one, amount).item() == pytest.approx(1)


# What cannot be


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"family": "cubes"}, "family must be one of mosaic, parents, .*, got 'cubes'"),
        ({"geometry": "flat"}, "geometry must be one of free, projected, tested, got 'flat'"),
        ({"eta": 1.1}, r"eta must be in \[0, 1\], got 1.1"),
        ({"eta": -0.1}, r"eta must be in \[0, 1\], got -0.1"),
        ({"eta": math.nan}, r"eta must be in \[0, 1\], got nan"),
        ({"pull": 1.5}, r"pull must be in \[0, 1\], got 1.5"),
        ({"count": 0}, "count must be at least 1, got none"),
        ({"family": "sphere", "parents": 3}, "^options of sphere are concentration, got parents$"),
        ({"color": 3}, "^options of mosaic are parents, margin, alike, even, reach, sharpness, got color$"),
        ({"family": "scalar", "parents": 2}, "scalar draws take no options, got parents: these are for mixtures"),
        ({"parents": COUNT + 1}, f"parents must be from 1 to the {COUNT} latents there are, got {COUNT + 1}"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(options, sentence):
    model = oracle()
    with pytest.raises(UsageError, match=sentence):
        synthesize(model, fitted(), **{"count": 2, **options})
    assert model.denoiser.calls == 0


def test_another_model_and_wrong_amounts_are_refused():
    with pytest.raises(UsageError, match="domain was fitted with model"):
        synthesizer(oracle(sha256="other"), fitted())
    with pytest.raises(UsageError, match=r"amount must be in \[0, 1\], got 1.2"):
        vary(oracle(), fitted(), unseen(1)[0], 1, amount=1.2)
    with pytest.raises(UsageError, match=r"images must be \(batch, 3, 8, 8\), got \(1, 3, 4, 4\)"):
        vary(oracle(), fitted(), torch.zeros(3, 4, 4), 1)


def test_the_names_are_all_there():
    assert set(MIXTURES) < set(FAMILIES)
    assert list(GEOMETRIES) == ["free", "projected", "tested"]


def test_mixtures_stay_away_from_the_fitted_images_before_any_call_of_the_network():
    """Margin 0 takes every mixture; a larger one repeats draws, and what is taken is that far away when clean."""
    domain, margin = fitted(), 1.2
    free, novel = drawing(domain, parents=2), drawing(domain, parents=2, margin=margin)
    starts = [novel(generator_of(0, number)) for number in range(20)]
    assert all(free(generator_of(0, number)).attempts == 1 for number in range(20))
    assert max(start.attempts for start in starts) > 1
    model = oracle()
    made = synthesize(model, domain, 20, parents=2, margin=margin, batch_size=20)
    assert model.denoiser.calls == domain.steps
    assert [start.attempts for start in made.starts] == [start.attempts for start in starts]
    assert made.acceptance < 1


def test_one_parent_alone_is_never_novel(monkeypatch):
    monkeypatch.setattr("nearfar.domain.synthesis.MOST_ATTEMPTS", 20)
    with pytest.raises(
        UsageError, match=r"^none of 20 mixtures is 1 from the fitted images: ask for a smaller margin$"
    ):
        drawing(fitted(), parents=1, margin=1.0)(generator_of(0, 0))
    with pytest.raises(UsageError, match=r"^margin must be at least 0, got -1$"):
        drawing(fitted(), margin=-1.0)


def test_parents_by_place_are_those_most_alike():
    """A share of 0.75 leaves each of 16 images 12 that it may be mixed with, 0.1 at least 8 or all that are needed."""
    domain = fitted()
    order = neighbors(domain.clean, COUNT)
    for alike, near in ((0.75, 12), (0.1, 8)):
        starts = [drawing(domain, alike=alike, even=False)(generator_of(0, number)) for number in range(40)]
        ranks = [(order[start.parents[0]] == one).nonzero().item() for start in starts for one in start.parents[1:]]
        assert max(ranks) == near - 1
    assert len(drawing(domain, alike=0.1, parents=COUNT)(generator_of(0, 0)).parents.unique()) == COUNT
    with pytest.raises(UsageError, match=r"^alike must be above 0 and at most 1, got 0$"):
        drawing(domain, alike=0.0)
