"""A model's own samples, made once: as 8-bit pictures, the same whether they come from the cache or not."""

import torch

from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import SOLVER, STEPS, Sampling
from nearfar.sampling.inversion import INVERTER
from nearfar.sampling.local_sampling import own_samples
from nearfar.sampling.own_domain import own_calls, own_domain
from nearfar.sampling.representation import own_representation


def test_own_samples_are_made_once_and_rounded_to_8_bits(model, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path))
    assert own_calls(model, 5, batch_size=2) == 3 * SOLVER.calls(STEPS)
    steps = []
    first = own_domain(model, 5, batch_size=2, on_step=lambda step, _: steps.append(step))
    assert len(steps) == 3 * STEPS
    assert (first - own_samples(model, 5, batch_size=2)).abs().max() <= 1 / 255 + 1e-6
    assert own_calls(model, 5, batch_size=2) == 0
    assert own_calls(model, 6, batch_size=2) == SOLVER.calls(STEPS)
    assert own_calls(model, 5, seed=1, batch_size=5) == SOLVER.calls(STEPS)
    again = own_domain(model, 5, batch_size=2, on_step=lambda step, _: steps.append(step))
    assert len(steps) == 3 * STEPS
    assert torch.equal(again, first)
    assert torch.equal(own_domain(model, 3), first[:3])
    longer = own_domain(model, 7, batch_size=2)
    assert torch.equal(longer[:5], first)
    assert (longer - own_samples(model, 7)).abs().max() <= 1 / 255 + 1e-5


def test_how_well_they_come_back_is_measured_once_for_each_way(model, tmp_path, monkeypatch):
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path))
    calls = []

    def figures(strength):
        sampling = Sampling(Level(strength), 2, INVERTER)
        return own_representation(model, sampling, count=3, on_step=lambda *_: calls.append(1))

    first = figures(0.5)
    assert len(calls) > STEPS
    made = len(calls)
    assert figures(0.5) == first
    assert len(calls) == made
    assert figures(0.6) != first
    assert made < len(calls) < 2 * made
