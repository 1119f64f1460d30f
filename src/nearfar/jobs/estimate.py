"""How long a job will take, from a network call that is timed as its workers make it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from nearfar.diffusion.schedule import Level
from nearfar.jobs.job import Job
from nearfar.jobs.pipeline import worker_pool
from nearfar.jobs.run import Plan, within_memory
from nearfar.models.model import FrozenModel

LONG = 10.0
"""Seconds beyond which a call of a whole batch is not made: its time is that of one image times their number."""


@dataclass(frozen=True)
class Estimate:
    """calls: network calls of the job, the least and the most. call: seconds of one. workers: who make them at once."""

    calls: tuple[int, int]
    call: float
    workers: int
    batch_size: int

    @property
    def seconds(self) -> tuple[float, float]:
        """Of all calls; reading and writing go on beside them."""
        least, most = (calls * self.call / self.workers for calls in self.calls)
        return least, most

    def __str__(self) -> str:
        spans = dict.fromkeys(map(span, self.seconds))
        return (
            f"{' to '.join(dict.fromkeys(f'{calls:,}' for calls in self.calls))} network calls of {self.call:.2g} s "
            f"for {self.batch_size} images each, {self.workers} at once: about {' to '.join(spans)}"
        )


def estimate(model: FrozenModel, calls: tuple[int, int], batches: int, batch_size: int, workers: int) -> Estimate:
    """calls: network calls for each batch. Cost: two calls for each worker, or one of one image where that is slow."""
    workers = max(1, min(workers, batches))
    with within_memory(batch_size):
        call = timed_call(model, batch_size, workers)
    least, most = (batches * each for each in calls)
    return Estimate((least, most), call, workers, batch_size)


def estimate_job(model: FrozenModel, job: Job, plan: Plan) -> Estimate:
    """Of what a plan still has to do."""
    inputs = sum(map(job.weigh, job.neighbors(plan.todo)))
    size = min(job.batch_size, max(1, inputs)) if job.capacity else plan.batch_size
    return estimate(model, job.calls, math.ceil(inputs / size), size, job.workers)


def timed_call(model: FrozenModel, batch_size: int, workers: int) -> float:
    """Seconds of a call for a whole batch while all workers make one, after a call that warms up."""
    with worker_pool(workers) as pool:
        alone = pool.submit(seconds_of, model, 1).result()
        if alone * batch_size > LONG:
            return alone * batch_size
        list(pool.map(seconds_of, [model] * workers, [batch_size] * workers))
        return max(pool.map(seconds_of, [model] * workers, [batch_size] * workers))


@torch.inference_mode()
def seconds_of(model: FrozenModel, images: int) -> float:
    states = torch.zeros(images, *model.latent_shape, device=model.device)
    times = Level(0.5).times(model.schedule, images)
    began = time.perf_counter()
    model.denoiser(states, times).cpu()
    return time.perf_counter() - began


def span(seconds: float) -> str:
    """Seconds as people say them: 12 s, 3 min, 2 h 10 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
