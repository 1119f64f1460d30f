"""A network that knows the answer is inverted exactly, whatever it predicts, at every level of every schedule."""

import pytest
import torch

from nearfar.diffusion.denoiser import PREDICTIONS, NetworkDenoiser, from_epsilon, predict
from nearfar.diffusion.schedule import NoiseSchedule
from oracle import GaussianDenoiser

DDPM = NoiseSchedule.variance_preserving(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
SCHEDULES = {
    "variance preserving": DDPM,
    "variance exploding": NoiseSchedule.variance_exploding(torch.logspace(-2, 1.7, 1000)),
    "flow": NoiseSchedule.flow(),
}
# What a perfect network answers, from the definitions in the papers that `nearfar.diffusion.solver` names.
ANSWERS = {
    "epsilon": lambda x_0, eps, alpha, sigma: eps,
    "sample": lambda x_0, eps, alpha, sigma: x_0,
    "v_prediction": lambda x_0, eps, alpha, sigma: alpha * eps - sigma * x_0,
    "flow_prediction": lambda x_0, eps, alpha, sigma: eps - x_0,
}


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def pair(batch=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, batch, 3, 4, 4, dtype=torch.float64, generator=generator)


def perfect(schedule, prediction, t):
    """A denoiser around a network that knows image and noise, the noisy image, and the image."""
    x_0, eps = pair(len(t))
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(t))
    answer = ANSWERS[prediction](x_0, eps, alpha, sigma)
    denoiser = NetworkDenoiser(lambda x, t: answer, schedule, PREDICTIONS[prediction], torch.float64)
    return denoiser, alpha * x_0 + sigma * eps, x_0


def test_every_prediction_has_an_answer_here():
    assert PREDICTIONS.keys() == ANSWERS.keys()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prediction", ANSWERS)
def test_a_perfect_network_gives_the_image_back(schedule, prediction):
    t = schedule.time_of_strength(times(0.01, 0.3, 0.7, 0.99))
    denoiser, x_t, x_0 = perfect(schedule, prediction, t)
    # float64 rounding divided by the smallest alpha here, 0.007.
    torch.testing.assert_close(denoiser(x_t, t), x_0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow_prediction"])
def test_without_any_signal_all_but_epsilon_still_know_the_image(prediction):
    flow = SCHEDULES["flow"]
    denoiser, x_t, x_0 = perfect(flow, prediction, times(1000))
    torch.testing.assert_close(denoiser(x_t, times(1000)), x_0, rtol=0, atol=1e-14)  # alpha is 0: rounding alone


@pytest.mark.parametrize("wrong", ANSWERS)
def test_a_network_read_as_another_kind_does_not_give_the_image_back(wrong):
    t = times(300, 300, 300, 300)
    for right in ANSWERS.keys() - {wrong}:
        denoiser, x_t, x_0 = perfect(DDPM, right, t)
        misread = NetworkDenoiser(denoiser.network, DDPM, PREDICTIONS[wrong], torch.float64)
        assert (misread(x_t, t) - x_0).abs().mean() > 0.1


def test_learned_variance_is_cut_off():
    x_0, eps = pair()
    learned = NetworkDenoiser(lambda x, t: torch.cat([eps, torch.full_like(eps, 99)], 1), DDPM, dtype=torch.float64)
    t = times(99, 99, 99, 99)
    x_t = DDPM.add_noise(x_0, t, eps)
    torch.testing.assert_close(learned(x_t, t), x_0, rtol=0, atol=1e-14)  # rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_network_runs_in_its_own_dtype_and_the_state_keeps_its(dtype):
    asked = []

    def network(x, t):
        asked.append((x.dtype, t.dtype, t.tolist()))
        return torch.zeros_like(x)

    x_t = pair()[0].float()
    t = times(0, 0.5, 250.25, 999)
    x_0 = NetworkDenoiser(network, DDPM, from_epsilon, dtype)(x_t, t)
    # Times stay float32: bfloat16 would round 999 to 1000.
    assert asked == [(dtype, torch.float32, [0, 0.5, 250.25, 999])]
    alpha, _ = DDPM.coefficients(t)
    assert torch.equal(x_0, x_t / alpha.float()[:, None, None, None])  # no rounding to the network's dtype on the way


class Recorder:
    """A denoiser that notes what it is asked."""

    def __init__(self, denoiser):
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.asked = []

    def __call__(self, x_t, t):
        self.asked.append((x_t.clone(), t.clone()))
        return self.denoiser(x_t, t)


def gaussian(schedule):
    mean, variance = (torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in ([0.3, -0.2, 0], [0.2, 1, 3]))
    return Recorder(GaussianDenoiser(schedule, mean, variance))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_image_and_noise_always_add_up_to_the_state(schedule):
    t = schedule.time_of_strength(times(0, 0.0003, 0.0007, 0.001, 0.1, 0.5, 0.99))  # three are below the first entry
    x_t, _ = pair(len(t))
    x_0, eps = predict(gaussian(schedule), x_t, t)
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(t))
    torch.testing.assert_close(alpha * x_0 + sigma * eps, x_t, rtol=0, atol=1e-13)  # rounding


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_no_network_is_asked_about_a_cleaner_image_than_it_was_trained_on(schedule):
    denoiser = gaussian(schedule)
    x_t, _ = pair(3)
    predict(denoiser, x_t, schedule.time_of_strength(times(0, 0.0004, 0.5)))
    ((asked_x, asked_t),) = denoiser.asked
    half = schedule.time_of_strength(times(0.5)).item()
    assert asked_t.tolist() == [schedule.first_time, schedule.first_time, half]
    assert torch.equal(asked_x, x_t)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_at_the_clean_end_the_image_is_itself_and_the_noise_is_that_of_the_first_level(schedule):
    x, _ = pair(1)
    denoiser = gaussian(schedule)
    x_0, eps = predict(denoiser, x, times(schedule.clean_time))
    assert torch.equal(x_0, x)
    first = times(schedule.first_time)
    alpha, sigma = (c[:, None, None, None] for c in schedule.coefficients(first))
    assert torch.equal(eps, (x - alpha * denoiser(x, first)) / sigma)


def test_levels_without_signal_do_not_suffer_from_clean_neighbors():
    flow = SCHEDULES["flow"]
    x_t, _ = pair(2)
    alone, _ = predict(gaussian(flow), x_t[:1], times(1000))
    beside_clean, _ = predict(gaussian(flow), x_t, times(1000, 0))
    assert torch.equal(beside_clean[:1], alone)
