"""The published versions beside the authors' formulas, on a network known in closed form."""

import math
from itertools import pairwise

import pytest
import torch

from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import DDIM, solve
from nearfar.domain.domain import Domain
from nearfar.domain.file import load_domain, save_domain
from nearfar.domain.presets import PRESETS, Published, gaussian, off_by, targets_of, way_down, way_up
from nearfar.domain.synthesis import drawing, generator_of, synthesize
from nearfar.errors import UsageError
from nearfar.models.model import FrozenModel, PixelSpace, Provenance
from nearfar.tensors import ImageContract
from oracle import GaussianDenoiser

BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
DDPM = NoiseSchedule.variance_preserving(BARS)
V1, V2 = PRESETS["paper-v1"], PRESETS["paper-v2"]
each = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
pytestmark = pytest.mark.filterwarnings("ignore:this network has no middle block", "ignore:domain and model's own")


def model_of(side=8, schedule=DDPM):
    denoiser = GaussianDenoiser(schedule, torch.zeros(3, 1, 1), torch.full((3, 1, 1), 0.1))
    known, cpu = Provenance("oracle", "0" * 64, "none"), torch.device("cpu")
    return FrozenModel(denoiser, PixelSpace(), ImageContract(side, 3), (3, side, side), known, cpu, torch.float32, 0)


def images(count, seed=0, scale=0.3):
    draws = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (0.2 + draws * scale).clamp(-1, 1)


def epsilon(x, t):
    """What the network of `model_of` says of the noise at step t."""
    bar = BARS[t]
    return math.sqrt(1 - bar) * x / (bar * 0.1 + 1 - bar)


def authors_steps(x, times, eta=0.0, noise=()):
    """DDIM from each time to the next, as in the authors' `denoising_step`; -1 has no noise (1.2 and 1.7)."""
    for number, (t, s) in enumerate(pairwise(times)):
        at, bt = BARS[t], BARS[s] if s >= 0 else torch.tensor(1.0).double()
        e = epsilon(x, t)
        x0 = (x - (1 - at).sqrt() * e) / at.sqrt()
        c1 = eta * ((1 - at / bt) * (1 - bt) / (1 - at)).clamp(min=0).sqrt()
        c2 = (1 - bt - c1**2).clamp(min=0).sqrt()
        x = bt.sqrt() * x0 + c2 * e + (c1 * noise[number] if eta else 0)
    return x


def authors_nodes(preset):
    return [math.floor(k * preset.time / (preset.nodes - 1)) for k in range(preset.nodes)]


@pytest.fixture(scope="module")
def domains():
    return {name: Domain.fit(model_of(), images(60), own=images(40, 9), preset=name) for name in PRESETS}


@each
def test_nodes_are_the_authors(preset):
    assert way_up(preset, DDPM).tolist() == [authors_nodes(preset)]
    assert way_down(preset, DDPM).tolist() == [[*reversed(authors_nodes(preset)), -1]]


@pytest.mark.parametrize("name", PRESETS)
def test_latents_are_those_of_the_authors_inversion(domains, name):
    expected = authors_steps(images(60).double(), authors_nodes(PRESETS[name]))
    assert torch.allclose(domains[name].latents.double(), expected, rtol=2e-3, atol=2e-3)  # held in float16
    assert (domains[name].steps, domains[name].pull, domains[name].preset) == (PRESETS[name].nodes, 0, name)
    assert domains[name].diagnostics["calls_per_image"] == PRESETS[name].nodes - 1


@pytest.mark.parametrize("name", PRESETS)
def test_the_way_back_is_the_authors(domains, name):
    made = synthesize(model_of(), domains[name], 3, batch_size=3)
    starts = torch.stack([start.latent for start in made.starts]).double()
    expected = authors_steps(starts, [*reversed(authors_nodes(PRESETS[name])), -1])
    assert torch.allclose(made.images.double(), expected.clamp(-1, 1), atol=1e-4)


def test_fresh_noise_on_the_way_back_is_added_as_the_authors_do():
    x, times, keys = images(2, 3), [*reversed(authors_nodes(V1)), -1], [b"a" * 16, b"b" * 16]
    first, second = (NoiseStream(keys, (3, 8, 8), torch.device("cpu"), V1.nodes) for _ in range(2))
    drawn = [first.draw() for _ in range(V1.nodes)]
    found = solve(model_of().denoiser, x, way_down(V1, DDPM).expand(2, -1), DDIM(0.3), second)
    assert torch.allclose(found.double(), authors_steps(x.double(), times, 0.3, drawn), atol=1e-4)


def test_the_gaussian_of_version_1_has_the_authors_slip():
    y = images(20).double()
    slipped = y.sum(0) / 19
    expected = math.sqrt((y - slipped).square().sum() / (20 * y[0].numel()))
    mean, deviation = gaussian(V1, y)
    assert torch.equal(mean, y.mean(0))
    assert deviation == pytest.approx(expected)


def test_the_gaussian_of_version_2_takes_the_variance_of_all_numbers():
    assert gaussian(V2, images(20))[1] == pytest.approx(images(20).double().flatten().numpy().std())


def test_candidates_of_version_2_are_20_points_of_the_authors_slerp(domains):
    paper = Published.fit(V2, domains["paper-v2"].latents)
    candidates, (number,) = paper.candidates(torch.Generator().manual_seed(4))
    drawn = paper.mean + paper.deviation * torch.randn(paper.mean.shape, generator=torch.Generator().manual_seed(4))
    a, b = paper.latents[number].flatten().double(), drawn.flatten().double()
    angle = torch.arccos(a @ b / (a.norm() * b.norm()))
    shares = torch.arange(1, 21).double()[:, None] / 21
    u, v = a / a.norm(), b / b.norm()
    points = (((1 - shares) * angle).sin() * u + (shares * angle).sin() * v) / angle.sin()
    points = points * ((1 - shares) * a.norm() + shares * b.norm())
    found = candidates.flatten(1).double()
    assert torch.cdist(points, found).amin(1).max() < 1e-3
    assert len(found) == 20


def test_candidates_of_version_1_are_draws():
    paper = Published.fit(V1, images(60))
    candidates, parents = paper.candidates(torch.Generator().manual_seed(4))
    noise = torch.randn(paper.mean.shape, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(candidates[0], paper.mean + paper.deviation * noise)
    assert parents == []


def test_version_1_tests_each_side_and_angle_of_a_triangle():
    """577, 60 and 90 degrees at the authors' size: tolerances 5, 2 and 2 (1.6)."""
    latents = 0.9203 * torch.randn(6, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    targets = targets_of(V1, latents, torch.Generator().manual_seed(0))
    assert targets.distance.value == pytest.approx(577, abs=1)
    assert targets.distance.tolerance == pytest.approx(5 * 0.9203 / 0.975, rel=0.01)
    assert (targets.origin_angle.tolerance, targets.pair_angle.tolerance) == pytest.approx((2, 2))
    off = off_by(latents[0], latents[1:3], targets)
    x, r, q = (point.flatten().double() for point in latents[:3])

    def angle(a, b):
        return torch.rad2deg(torch.arccos(a @ b / (a.norm() * b.norm())))

    sides = [(x - r).norm() - targets.distance.value, (x - q).norm() - targets.distance.value]
    corners = [angle(r - x, q - x), angle(x - r, q - r), angle(x - q, r - q)]
    origin = [angle(x, r), angle(x, q), angle(r, q)]
    expected = [abs(side) / targets.distance.tolerance for side in sides]
    expected += [abs(corner - targets.pair_angle.value) / 2 for corner in corners]
    expected += [abs(one - targets.origin_angle.value) / 2 for one in origin]
    assert off.tolist() == pytest.approx([float(one) for one in expected], abs=1e-3)
    assert off.max() < 1


def test_version_2_has_its_tolerances_at_the_authors_size():
    latents = 0.975 * torch.randn(8, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    targets = targets_of(V2, latents, torch.Generator().manual_seed(0))
    assert targets.distance.value == pytest.approx(611.4, abs=0.5)
    assert targets.distance.tolerance == pytest.approx(0.3, rel=0.01)
    assert (targets.origin_angle.tolerance, targets.pair_angle.tolerance) == pytest.approx((0.1, 0.1))


def test_a_file_keeps_the_preset(domains, tmp_path):
    save_domain(domains["paper-v2"], tmp_path / "a.domain")
    again = load_domain(tmp_path / "a.domain")
    assert again.preset == "paper-v2"
    assert torch.equal(synthesize(model_of(), again, 2).images, synthesize(model_of(), domains["paper-v2"], 2).images)


def test_what_presets_cannot_do_is_refused(domains):
    with pytest.raises(UsageError, match="preset must be one of paper-v1, paper-v2, got 'paper'"):
        Domain.fit(model_of(), images(10), own=images(10, 9), preset="paper")
    with pytest.raises(
        UsageError, match="paper-v1 draws are of a domain that was fitted with it, this one with paper-v2"
    ):
        drawing(domains["paper-v2"], "paper-v1")(generator_of(0, 0))
    short = NoiseSchedule.variance_preserving(BARS[::10])
    with pytest.raises(UsageError, match="presets are of models with times -1 to 999, this one has -1 to 99"):
        Domain.fit(model_of(schedule=short), images(10), own=images(10, 9), preset="paper-v1")
