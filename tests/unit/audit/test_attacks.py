"""Attacks against answers in closed form, and against scikit-learn and SciPy."""

import math
import weakref

import pytest
import torch

from gaussian_models import gaussian
from nearfar.audit.model_attacks import (
    area,
    bound,
    denoising_loss,
    epsilon,
    membership_by_outputs,
    spent,
    unbounded,
    walked_back,
)
from nearfar.audit.trained_attacker import trained_attack
from nearfar.audit.verification import REPEATS, PairScores, Roc, resampled, verification
from nearfar.audit.view import View, averaging, chance, hits, linkage, reidentification
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import DDIM
from nearfar.errors import UsageError
from nearfar.sampling.local_sampling import local_sample

PEOPLE = [number // 5 for number in range(200)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def people(noise=0.3, width=16, seed=0):
    """40 people with 5 pictures each: a center, and the picture's own deviation from it."""
    return normal(40, width, seed=seed).repeat_interleave(5, 0) + noise * normal(200, width, seed=seed + 1)


def found(figures, *words):
    (figure,) = [each for each in figures if all(word in each.name for word in words)]
    return figure


def test_hits_share_the_first_places_among_candidates_that_tie():
    scores = torch.tensor([[3.0, 2, 1], [1, 1, 1], [0, 2, 2], [1, 2, 3]], dtype=torch.float64)
    right = torch.tensor([[True, False, False]] * 3 + [[False] * 3])
    assert hits(scores, right, 1).nan_to_num(-1).tolist() == [1, 1 / 3, 0, -1]
    assert hits(scores, right, 3).nan_to_num(-1).tolist() == [1, 1, 1, -1]
    others = torch.tensor([True, False, True]).expand_as(right)
    assert hits(scores, right, 1, others)[:2].tolist() == [1, 0.5]


def test_chance_is_hypergeometric():
    stats = pytest.importorskip("scipy.stats")
    right = torch.tensor([[True] * 3 + [False] * 7, [True] * 1 + [False] * 9])
    expected = sum(1 - stats.hypergeom.pmf(0, 10, good, 5) for good in (3, 1)) / 2
    assert chance(right, 5) == pytest.approx(expected, rel=1e-12)


def test_outputs_that_are_their_originals_are_found_and_unrelated_ones_by_chance():
    same = reidentification(View("pixels", people(), people()), PEOPLE)
    assert found(same, "re-identified, own original, rank 1").value == 1
    assert found(same, "re-identified, same person", "rank 1").value == pytest.approx(
        found(same, "untouched", "rank 1").value
    )
    assert found(same, "untouched", "rank 1").chance == pytest.approx(4 / 199)


def test_unrelated_outputs_are_found_as_often_as_chance_says():
    draws = [View("pixels", people(9.0, seed=seed), people(9.0, seed=seed + 2)) for seed in range(100, 140, 4)]
    figures = [reidentification(view, PEOPLE) for view in draws]
    for words in (("re-identified, own original", "rank 1"), ("re-identified, same person", "rank 5")):
        each = [found(some, *words) for some in figures]
        mean, guess = sum(figure.value for figure in each) / 10, each[0].chance
        assert mean == pytest.approx(guess, abs=4 * (guess / 2000) ** 0.5)  # four standard deviations
        assert sum(figure.low < guess < figure.high for figure in each) >= 8


def test_outputs_are_told_from_pictures_of_other_people():
    figures = reidentification(View("pixels", people(), people() + 0.01, others=people(seed=5)))
    assert found(figures, "among others", "rank 1").value == 1
    assert found(figures, "among others", "rank 1").chance == pytest.approx(1 / 201)


def test_several_outputs_of_an_original_are_linked_and_averaged():
    originals, of = normal(50, 8), torch.arange(50).repeat_interleave(8)
    outputs = originals[of] + normal(400, 8, seed=3)
    view = View("vectors", originals, outputs, of=of)
    single, mean = averaging(view, [])
    # Averages of 8 have noise of 1 / sqrt 8; a candidate is nearer with probability Phi(-distance / (2 noise)).
    assert single.value < 0.7
    assert mean.value > 0.95
    assert found(linkage(view), "same original", "rank 1").chance == pytest.approx(7 / 399)
    assert found(linkage(view), "same original", "rank 1").value > 0.2


def test_linkage_of_a_person_leaves_out_outputs_of_the_same_picture():
    view = View("vectors", people(0.0), people(0.0).repeat(2, 1), of=torch.arange(200).repeat(2))
    figure = found(linkage(view, PEOPLE), "same person", "rank 1")
    assert figure.value == 1
    assert figure.chance == pytest.approx(8 / 398)


def test_the_equal_error_rate_of_two_normal_distributions():
    scores = torch.cat([normal(100_000) + 2, normal(100_000, seed=1)])
    genuine = torch.arange(200_000) < 100_000
    curve = Roc.of(PairScores(scores, genuine, torch.zeros(200_000, dtype=torch.int64)))
    phi = torch.special.ndtr(torch.tensor([-1.0, 2 - 3.0902], dtype=torch.float64)).tolist()
    assert curve.equal_error() == pytest.approx(phi[0], abs=0.005)
    assert curve.operating_point()[1] == pytest.approx(phi[1], abs=0.01)


def test_the_curve_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, genuine = normal(500).mul(5).round(), normal(500, seed=1) > 0.8
    curve = Roc.of(PairScores(scores, genuine, torch.arange(500)))
    false, true, thresholds = metrics.roc_curve(genuine, scores, drop_intermediate=False)
    for ours, theirs in zip((curve.false, curve.true, curve.thresholds), (false, true, thresholds), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-12)
    weights = (normal(500, seed=2) > 0).double()
    weighted = Roc.of_ordered(PairScores(scores, genuine, torch.arange(500)).ordered(), weights)
    expected = metrics.auc(*metrics.roc_curve(genuine, scores, sample_weight=weights.numpy())[:2])
    assert torch.trapezoid(weighted.true, weighted.false).item() == pytest.approx(expected)


def test_of_curves_drawn_anew_no_more_than_two_numbers_are_kept(monkeypatch):
    alive, most, of = weakref.WeakSet(), [], Roc.of_ordered

    def counted(*given):
        curve = of(*given)
        alive.add(curve)
        most.append(len(alive))
        return curve

    monkeypatch.setattr(Roc, "of_ordered", counted)
    drawn = resampled(PairScores(normal(400), normal(400, seed=1) > 0, torch.arange(400) // 10))
    assert len(drawn) == len(most) == REPEATS
    assert max(most) <= 2
    assert len(set(drawn)) > REPEATS / 2


def test_verification_tells_outputs_that_kept_the_person_from_those_that_did_not():
    few, whose = people()[:100], PEOPLE[:100]
    kept = verification(View("vectors", few, few + 0.1 * normal(100, 16, seed=7)), whose)
    lost = verification(View("vectors", few, people(seed=5)[:100]), whose)
    assert found(kept.figures, "outputs", "equal error").value < 0.02
    error = found(lost.figures, "outputs", "equal error")
    assert error.low < 0.5 < error.high
    assert found(kept.figures, "accepted").value > 0.8
    assert found(lost.figures, "accepted").value < 0.05
    assert "9500 impostor pairs: too few" in found(kept.figures, "outputs", "true rate").note
    assert len(kept.pairs.scores) == 100 * 99


def test_a_trained_attacker_finds_what_noise_hides_and_nothing_where_nothing_is():
    """Outputs hide people under a shift and loud axes that are the same for everybody."""
    loud = torch.diag(torch.cat([torch.full((8,), 0.2), torch.full((8,), 20.0)]).double())
    hidden = View("vectors", people(), people() + 3 + normal(200, 16, seed=7) @ loud)
    for who in (PEOPLE, None):
        figures = trained_attack(hidden, who)
        assert found(figures, "untrained").value < 0.15
        assert found(figures, "trained (distance)").value > 0.6
    for figure in trained_attack(View("vectors", people(), people(seed=5)), PEOPLE):
        assert figure.low < figure.chance < figure.high


def test_a_trained_attacker_never_learns_from_the_person_that_it_attacks():
    """Each person's outputs are another person's, for ever: who has seen the person could tell, others cannot."""
    strange = people(0.0)[torch.arange(200).roll(50)]
    for figure in trained_attack(View("vectors", people(0.0), strange), PEOPLE)[1:]:
        assert figure.value < 0.1


def test_people_with_one_picture_each_have_no_other_to_be_found_by():
    view = View("pixels", people(), people())
    figures = [*reidentification(view, range(200)), *linkage(view, range(200)), *verification(view, range(200)).figures]
    assert [figure.name[-6:] for figure in figures] == ["rank 1", "rank 5"]
    with pytest.raises(UsageError, match="at least 20 people, got 0: give more images of each"):
        trained_attack(view, range(200))


def test_few_people_teach_nothing():
    with pytest.raises(UsageError, match="at least 20 people, got 4"):
        trained_attack(View("pixels", people()[:20], people()[:20]), PEOPLE[:20])


def test_membership_is_the_area_of_scikit_learn_with_the_interval_of_delong():
    metrics = pytest.importorskip("sklearn.metrics")
    inside, outside = (normal(300) + 0.7).mul(3).round(), normal(200, seed=1).mul(3).round()
    figure = area("membership", inside, outside, "none")
    truth = [1] * 300 + [0] * 200
    assert figure.value == pytest.approx(metrics.roc_auc_score(truth, torch.cat([inside, outside])))
    # The deviation of an area of 0.69 for normal scores, by drawing 2000 times.
    draws = torch.stack([(normal(2000, 300, seed=2) + 0.7), normal(2000, 300, seed=3)])[:, :, None]
    areas = (draws[0, :, 0, :, None] > draws[1, :, 0, None, :200])[:400].double().mean((1, 2))
    assert (figure.high - figure.low) / 2 / 1.96 == pytest.approx(areas.std().item(), rel=0.15)


def test_members_that_outputs_were_made_from_lie_nearer_to_them():
    members, others = normal(100, 16), normal(100, 16, seed=1)
    assert membership_by_outputs("vectors", members + 0.1, members, others).value > 0.99
    figure = membership_by_outputs("vectors", normal(100, 16, seed=2), members, others)
    assert figure.low < 0.5 < figure.high


def test_the_denoising_loss_of_gaussian_data():
    """The error of the exact prediction has variance `lam sigma^2 / (alpha^2 lam + sigma^2)`."""
    model = gaussian()
    lam = model.denoiser.variance
    images = (model.denoiser.mean + lam**0.5 * normal(64, 3, 16, 16)).float().clamp(-1, 1)
    time = model.schedule.time_of_strength(torch.tensor([0.3], dtype=torch.float64))
    alpha, sigma = (value.item() for value in model.schedule.coefficients(time))
    expected = (alpha**2 * lam / (alpha**2 * lam + sigma**2)).mean().item()
    assert denoising_loss(model, images, 0.3).mean().item() == pytest.approx(expected, rel=0.05)


def test_known_noise_walks_back_further_than_other_noise():
    model, key = gaussian(), SecretKey.from_seed(7)
    before = (model.denoiser.mean + model.denoiser.variance**0.5 * normal(16, 3, 16, 16)).float().clamp(-1, 1)
    after = local_sample(model, before, strength=0.3, key=key, steps=50, solver=DDIM())
    published, known, other = walked_back(model, before, after, 0.3, key)
    assert known.value > 0.98
    assert known.low > published.value > other.high


@pytest.mark.parametrize("mu", [0.2, 1.0, 4.3])
@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_the_bound_is_the_integral_of_what_exceeds_epsilon(mu, eps):
    x = torch.linspace(-12, 18, 600_001, dtype=torch.float64)
    first, second = ((-((x - center) ** 2) / 2).exp() / math.sqrt(2 * math.pi) for center in (mu, 0.0))
    excess = torch.trapezoid((first - math.exp(eps) * second).clamp(min=0), x)
    assert spent(eps, mu) == pytest.approx(excess.item(), abs=1e-8)


def test_epsilon_inverts_delta_and_does_not_overflow():
    for mu in (0.05, 0.7, 4.3, 160.0):
        assert spent(epsilon(mu), mu) == pytest.approx(1e-5, rel=1e-4)
    assert epsilon(0.7) == pytest.approx(2.9, abs=0.1)
    assert epsilon(0.0) == 0
    assert epsilon(math.inf) == math.inf


def test_the_bound_of_two_images_is_their_distance_in_units_of_the_noise():
    images = torch.zeros(2, 3, 4, 4)
    images[1] = 0.5
    figures = bound(images, 2.0)
    assert found(figures, "mu at the mean").value == pytest.approx(0.5 * math.sqrt(48) / 2)
    assert {figure.value for figure in bound(images, math.inf)} == {0}


def test_what_is_copied_has_no_bound_and_that_is_said():
    assert unbounded({}) == "no bound for what is copied: sizes and names, alpha channels where images have them"
    assert unbounded({"keep_metadata": True}).endswith(", and the metadata that were kept")
