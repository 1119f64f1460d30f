"""What a dry run says of calls and time, held against what a run then does."""

import time

import pytest
from PIL import Image

from nearfar.diffusion.schedule import Level
from nearfar.diffusion.solver import DPMSolverPPSDE, Heun, Sampling
from nearfar.jobs.anonymize import anonymize_job
from nearfar.jobs.enhance import enhance_job
from nearfar.jobs.estimate import Estimate, estimate, estimate_job, span
from nearfar.jobs.reconstruct import invert_job, reconstruct_job
from nearfar.jobs.run import plan_run, run
from nearfar.sampling.enhancement import Enlargement


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(5):
        Image.new("RGB", (20, 12), (40 * number, 90, 30)).save(source / f"{number}.png")
    return source


def counting(model, monkeypatch):
    """The network calls that are made, each as the number of its images."""
    calls = []
    network = model.denoiser.network
    monkeypatch.setitem(vars(model.denoiser), "network", lambda x, t: calls.append(len(x)) or network(x, t))
    return calls


@pytest.mark.parametrize(
    "job_of",
    [
        lambda model: anonymize_job(model, Sampling(Level(0.5), 3, DPMSolverPPSDE()), batch_size=2),
        lambda model: reconstruct_job(model, Sampling(Level(0.5), 3, Heun()), batch_size=2),
        lambda model: invert_job(model, Sampling(Level(0.5), 3, Heun()), batch_size=4),
        lambda model: enhance_job(model, Enlargement(scale=2, steps=2), batch_size=2),
    ],
)
def test_as_many_calls_are_made_as_were_said(model, folder, tmp_path, monkeypatch, job_of):
    job = job_of(model)
    plan = plan_run(job, folder, tmp_path / "out", resume=False)
    said = estimate_job(model, job, plan)
    calls = counting(model, monkeypatch)
    run(job, tmp_path / "out", plan)
    assert said.calls == (len(calls), len(calls))


def test_time_is_that_of_the_calls_shared_by_the_workers(model, monkeypatch):
    network = model.denoiser.network
    monkeypatch.setitem(vars(model.denoiser), "network", lambda x, t: time.sleep(0.02) or network(x, t))
    said = estimate(model, (3, 4), batches=10, batch_size=2, workers=2)
    assert said.calls == (30, 40)
    assert 0.02 < said.call < 0.2
    assert said.seconds == pytest.approx((15 * said.call, 20 * said.call))


def test_a_call_that_would_take_long_is_made_for_one_image_alone(model, monkeypatch):
    calls = counting(model, monkeypatch)
    monkeypatch.setattr("nearfar.jobs.estimate.LONG", 0.0)
    said = estimate(model, (1, 1), batches=1, batch_size=64, workers=2)
    assert calls == [1]
    assert said.call > 0


def test_times_are_said_as_people_say_them():
    assert [span(seconds) for seconds in (0.31, 12.4, 190.0, 7800.0)] == ["0.3 s", "12 s", "3 min", "2 h 10 min"]
    assert str(Estimate((20, 40), 0.5, 2, 32)) == (
        "20 to 40 network calls of 0.5 s for 32 images each, 2 at once: about 5.0 s to 10 s"
    )
