"""Every solver against the scheduler of diffusers that does the same, image by image.

Ours carries one batch whose images start at different levels; theirs walks each image alone, over the same times, with
the same noise and the same small UNet. No pixel may differ by more than 1e-5: float32 rounds to 1e-7, their schedulers
compute coefficients in float32, and a UNet differs by 1e-6 between a batch and single images.
"""

from unittest import mock

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm

from nearfar.diffusion import solver as solver_module
from nearfar.diffusion.denoiser import PREDICTIONS, NetworkDenoiser
from nearfar.diffusion.noise import NoiseStream
from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.diffusion.solver import DDIM, DPMSolverPP, DPMSolverPPSDE, Heun, solve

# In diffusers 0.42.1 with numpy 2: "__array__ implementation doesn't accept a copy keyword".
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

TABLE = DDPMScheduler().alphas_cumprod
STEPS = 10
SPACINGS = torch.tensor([100, 50, 20, 10])  # one image each: the first starts at strength 0.9, the last at 0.09
LEADING = torch.cat([SPACINGS[:, None] * torch.arange(STEPS - 1, -1, -1), torch.full((4, 1), -1)], 1).double()
TRAILING = torch.cat([SPACINGS[:, None] * torch.arange(STEPS, 0, -1) - 1, torch.full((4, 1), -1)], 1).double()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=8,
    )
    return model.eval().requires_grad_(False)


# What a network trained on standard normal data would answer, from x_t, alpha and sigma.
STANDARD_NORMAL = {
    "epsilon": lambda x, alpha, sigma: sigma * x,
    "sample": lambda x, alpha, sigma: alpha * x,
    "v_prediction": lambda x, alpha, sigma: 0 * x,
}


each_case = pytest.mark.parametrize(
    ("prediction", "grid"),
    [("epsilon", LEADING), ("epsilon", TRAILING), ("v_prediction", LEADING), ("sample", TRAILING)],
    ids=["epsilon", "epsilon, trailing", "v", "sample, trailing"],
)


def predictor(unet, prediction="epsilon"):
    """The UNet disturbs the answer for standard normal data by a tenth of its output.

    Alone, an untrained epsilon network answers about 0: `x_0 = x_t / alpha` then carries the state from 1 at t = 900
    to 270 at the end, where float32 itself rounds to 3e-5.
    """

    def network(x, t):
        abar = TABLE[t.long()][:, None, None, None]
        return STANDARD_NORMAL[prediction](x, abar.sqrt(), (1 - abar).sqrt()) + 0.1 * unet(x, t).sample

    return network


def start():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def stream():
    return NoiseStream([row.to_bytes(16, "little") for row in range(1, 5)], (3, 8, 8))


def draws():
    noise = stream()
    return [noise.draw() for _ in range(STEPS)]


def ours(unet, solver, grid=LEADING, prediction="epsilon", noise=None, table=TABLE):
    schedule = NoiseSchedule.variance_preserving(table)
    denoiser = NetworkDenoiser(predictor(unet, prediction), schedule, PREDICTIONS[prediction])
    return solve(denoiser, start(), grid, solver, noise or stream())


def theirs(unet, scheduler_for, grid=LEADING, draws=(), x=None, **options):
    """Each image alone. `scheduler_for(times)` is a scheduler that is set to these times, or to more."""
    images = []
    for row, image in enumerate((start() if x is None else x).split(1)):
        times = grid[row, :-1].long()
        scheduler = scheduler_for(times)
        network = predictor(unet, scheduler.config.prediction_type)
        noises = iter(draw[row : row + 1] for draw in draws)
        for t in scheduler.timesteps[scheduler.timesteps <= times[0]]:
            output = network(scheduler.scale_model_input(image, t), t[None])
            noise = {"variance_noise": next(noises)} if draws else {}
            image = scheduler.step(output, t, image, **noise, **options).prev_sample
        images.append(image)
    return torch.cat(images)


def check(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5
    assert theirs.std() > 0.5  # and both did something


# Their schedulers


def ddim(grid, **config):
    """It knows no other times than its own: of 1000 / spacing, `theirs` takes the last ten."""
    spacing = "trailing" if grid is TRAILING else "leading"

    def scheduler_for(times):
        scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing, **config)
        scheduler.set_timesteps(1000 // int(times[0] - times[1]))
        return scheduler

    return scheduler_for


class DDPMWithNoise(DDPMScheduler):
    """It draws its noise itself: put ours in the way."""

    def step(self, output, t, image, variance_noise):
        with mock.patch.object(scheduling_ddpm, "randn_tensor", return_value=variance_noise):
            return super().step(output, t, image)


def at_times(scheduler_class, **config):
    def scheduler_for(times):
        scheduler = scheduler_class(beta_start=0.0001, beta_end=0.02, **config)
        scheduler.set_timesteps(timesteps=times.tolist())
        return scheduler

    return scheduler_for


def ddpm(**config):
    def scheduler_for(times):
        scheduler = at_times(DDPMWithNoise, variance_type="fixed_small", clip_sample=False, **config)(times)
        # It takes 1 - abar_t / abar_s in float32, which next to 1 is wrong by 1e-4 of itself and moves pixels by 4e-5:
        # the same table in float64.
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        return scheduler

    return scheduler_for


def dpm_solver(algorithm, **config):
    return at_times(
        DPMSolverMultistepScheduler,
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
        **config,
    )


# Parity


@each_case
def test_ddim(unet, prediction, grid):
    reference = theirs(unet, ddim(grid, prediction_type=prediction), grid)
    check(ours(unet, DDIM(), grid, prediction), reference)


@each_case
def test_ddim_with_noise(unet, prediction, grid):
    reference = theirs(unet, ddim(grid, prediction_type=prediction), grid, draws(), eta=0.7)
    check(ours(unet, DDIM(eta=0.7), grid, prediction), reference)


def test_ddim_that_ends_at_the_first_entry(unet):
    """As Stable Diffusion is configured: times 901, 801 ... 1, and the last step goes to entry 0."""
    grid = torch.cat([LEADING[:, :-1] + 1, torch.zeros(4, 1)], 1)
    reference = theirs(unet, ddim(LEADING, steps_offset=1, set_alpha_to_one=False), grid)
    check(ours(unet, DDIM(), grid), reference)


@each_case
def test_ancestral_is_ddpm_with_the_small_variance(unet, prediction, grid):
    reference = theirs(unet, ddpm(prediction_type=prediction), grid, draws())
    check(ours(unet, DDIM(eta=1.0), grid, prediction), reference)


@each_case
def test_dpm_solver(unet, prediction, grid):
    reference = theirs(unet, dpm_solver("dpmsolver++", prediction_type=prediction), grid)
    check(ours(unet, DPMSolverPP(), grid, prediction), reference)


@each_case
def test_dpm_solver_sde(unet, prediction, grid):
    reference = theirs(unet, dpm_solver("sde-dpmsolver++", prediction_type=prediction), grid, draws())
    check(ours(unet, DPMSolverPPSDE(), grid, prediction), reference)


def heun_by_velocity(unet, x, angles, times):
    """One image, in the schedule's angle, where the trajectory's slope is `v`: turn by it, then correct the turn."""
    network = predictor(unet)
    for phi, psi, t, s in zip(angles, angles[1:], times, times[1:], strict=False):
        eps = network(x, t[None])
        v = (eps - phi.sin() * x) / phi.cos()  # from x = cos x_0 + sin eps and v = cos eps - sin x_0
        turn = psi - phi
        new = turn.cos() * x + turn.sin() * v
        if psi > 0:
            v_new = (network(new, s[None]) - psi.sin() * new) / psi.cos()
            new = new + turn / 2 * (v_new - (turn.cos() * v - turn.sin() * x))
        x = new
    return x


@pytest.mark.parametrize("grid", [LEADING, TRAILING], ids=["leading", "trailing"])
def test_heun_on_a_variance_preserving_schedule(unet, grid):
    """HeunDiscreteScheduler steps in sigma / alpha, ours in the angle; this is the angle's, written with velocities."""
    angle = torch.cat([torch.zeros(1), ((1 - TABLE) / TABLE).sqrt().atan()]).double()[grid.long() + 1].float()
    singles = [heun_by_velocity(unet, x, a, t) for x, a, t in zip(start().split(1), angle, grid, strict=True)]
    check(ours(unet, Heun(), grid), torch.cat(singles))


@pytest.mark.parametrize("grid", [LEADING, TRAILING], ids=["leading", "trailing"])
def test_heun_on_a_variance_exploding_schedule(unet, grid):
    """The same walk in the coordinates of EDM, in which their scheduler computes."""
    ratio = ((1 - TABLE) / TABLE).sqrt()
    network = predictor(unet)

    def scaled_network(x, t):
        return network(x / (1 + ratio[t.long()] ** 2).sqrt()[:, None, None, None], t)

    scaled = start() / TABLE[grid[:, 0].long()].sqrt()[:, None, None, None]
    denoiser = NetworkDenoiser(scaled_network, NoiseSchedule.variance_exploding(ratio))
    check(solve(denoiser, scaled, grid, Heun()), theirs(unet, at_times(HeunDiscreteScheduler), grid, x=scaled))


# What the check must see


@pytest.fixture(scope="module")
def references(unet):
    return {
        "ddim": (DDIM(eta=0.7), theirs(unet, ddim(LEADING), draws=draws(), eta=0.7)),
        "dpm++sde": (DPMSolverPPSDE(), theirs(unet, dpm_solver("sde-dpmsolver++"), draws=draws())),
    }


each_stochastic = pytest.mark.parametrize("name", ["ddim", "dpm++sde"])


class Late:
    """A UNet that is asked about the time after."""

    def __init__(self, unet, by):
        self.unet, self.by = unet, by

    def __call__(self, x, t):
        return self.unet(x, t + self.by)


class Swapped(NoiseStream):
    """The noise of other images, in the same batch."""

    def draw(self):
        return super().draw().flip(0)


def swapped():
    return Swapped([row.to_bytes(16, "little") for row in range(1, 5)], (3, 8, 8))


def one_draw_ahead():
    noise = stream()
    noise.draw()
    return noise


MUTANTS = {
    "network asked one time late": lambda unet: {"unet": Late(unet, 1)},
    "network asked one time early": lambda unet: {"unet": Late(unet, -1)},
    "rows of noise swapped": lambda unet: {"noise": swapped()},
    "noise of the step after": lambda unet: {"noise": one_draw_ahead()},
    "abar for sqrt(abar)": lambda unet: {"table": TABLE**2},
    "table one entry off": lambda unet: {"table": torch.cat([TABLE[1:], TABLE[-1:] / 2])},
    "rows of times swapped": lambda unet: {"grid": LEADING.flip(0)},
    "one row starts one time early": lambda unet: {"grid": LEADING + torch.eye(4, STEPS + 1)},
    "ends at the first entry": lambda unet: {"grid": LEADING.clamp(min=0)},
}


@each_stochastic
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_sees_a_wrong_walk(unet, references, mutant, name):
    solver, reference = references[name]
    with pytest.raises(AssertionError):
        check(ours(**{"unet": unet, "solver": solver, **MUTANTS[mutant](unet)}), reference)


# With kept = rho_s / rho_t the noise is sigma sqrt(1 - kept^2): what to call kept to get another coefficient.
COEFFICIENTS = {
    "square root removed": lambda kept: (1 - (1 - kept**2) ** 2).sqrt(),
    "kept for its square": lambda kept: kept.sqrt(),
    "1 % less noise": lambda kept: (1 - 0.99**2 * (1 - kept**2)).sqrt(),
}


@each_stochastic
@pytest.mark.parametrize("mutant", COEFFICIENTS)
def test_the_check_sees_a_wrong_coefficient(unet, references, mutant, name, monkeypatch):
    solver, reference = references[name]
    decay = solver_module.decay
    monkeypatch.setattr(solver_module, "decay", lambda *arguments: COEFFICIENTS[mutant](decay(*arguments)))
    with pytest.raises(AssertionError):
        check(ours(unet, solver), reference)


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=0.71), DDIM(eta=1.0), DPMSolverPP()])
def test_the_check_tells_similar_solvers_apart(unet, references, solver):
    for _, reference in references.values():
        with pytest.raises(AssertionError):
            check(ours(unet, solver), reference)
