"""Recorded networks: what is kept, what is handed out, what happens when recording fails; on a GPU the real thing."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch

from nearfar import SecretKey, load_model, local_sample
from nearfar.diffusion.solver import SOLVERS
from nearfar.jobs.job import workers_for
from nearfar.models.graphs import SHAPES, GpuNetwork, Recording, float32_products, record_graph, switches_of
from nearfar.models.loading import on_gpu
from nearfar.models.model import default_batch_size

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")


def double(x, t):
    return 2 * x + t[:, None, None, None]


def record(made, network, x, t, pool):
    """Like a graph: works in memory of its own, which every replay writes over."""
    with torch.inference_mode(False), torch.no_grad():
        x, t = torch.empty_like(x).copy_(x), torch.empty_like(t).copy_(t)
        output = network(x, t)
    made.append((tuple(x.shape), pool))
    return Recording(x, t, output, lambda: output.copy_(network(x, t)), pool or object())


def inputs(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 4, 4, generator=generator), torch.rand(batch, generator=generator)


def test_a_shape_is_recorded_once_and_what_was_handed_out_stays():
    made = []
    network = GpuNetwork(double, False, partial(record, made))
    first, second = inputs(2), inputs(2, seed=1)
    with torch.inference_mode():
        kept = network(*first)
    assert torch.equal(network(*second), double(*second))  # outside of inference mode too
    assert torch.equal(kept, double(*first))
    assert [shape for shape, _ in made] == [(2, 3, 4, 4)]


def test_shapes_share_a_pool_and_the_oldest_gives_way():
    made = []
    network = GpuNetwork(double, False, partial(record, made))
    for batch in [*range(1, SHAPES + 2), 2, 1]:
        assert torch.equal(network(*inputs(batch)), double(*inputs(batch)))
    assert [shape[0] for shape, _ in made] == [*range(1, SHAPES + 2), 1]
    assert made[0][1] is None
    assert len({id(pool) for _, pool in made[1:]}) == 1


def test_a_failed_recording_is_said_once_and_the_network_runs_as_it_is(caplog):
    attempts = []

    def fail(network, x, t, pool):
        attempts.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    network = GpuNetwork(double, False, fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(network(*inputs(2)), double(*inputs(2)))
    assert len(attempts) == len(caplog.records) == 1
    assert caplog.messages[0].endswith("kernel by kernel: operation not permitted when stream is capturing")


def test_memory_that_runs_out_in_a_recording_is_tried_again_with_another_shape(caplog):
    made = []

    def scarce(network, x, t, pool):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(made, network, x, t, pool)

    network = GpuNetwork(double, False, scarce)
    with caplog.at_level(logging.WARNING):
        for batch in (2, 4, 2):
            assert torch.equal(network(*inputs(batch)), double(*inputs(batch)))
    assert made == [((2, 3, 4, 4), None)] * 2  # the failure let go of all memory
    assert "does not hold" in caplog.messages[0]


def test_whoever_differentiates_gets_the_network_itself():
    made = []
    network = GpuNetwork(double, False, partial(record, made))
    x, t = inputs(2)
    network(x.requires_grad_(), t).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert not made


def test_without_a_recorder_every_call_is_the_network_s():
    assert torch.equal(GpuNetwork(double, False, None)(*inputs(2)), double(*inputs(2)))


def switches():
    return [getattr(place, name) for place, name, _ in switches_of(True)]


@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_as_asked_within_and_as_before_afterwards(tf32):
    before, gpu = switches(), torch.device("cuda")

    def interrupted():
        with float32_products(gpu, tf32):
            assert switches() == [tf32, tf32]
            with float32_products(gpu, not tf32):
                assert switches() == [not tf32, not tf32]
            assert switches() == [tf32, tf32]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert switches() == before


def test_products_of_a_cpu_are_left_alone():
    before = switches()
    with float32_products(CPU, not before[0]):
        assert switches() == before


def test_a_process_with_torch_s_newer_switches_keeps_them():
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(matrices, "fp32_precision"):
        pytest.skip("this torch has the older switches alone")
    before = convolutions.allow_tf32, matrices.allow_tf32
    try:
        matrices.fp32_precision, convolutions.conv.fp32_precision = "tf32", "ieee"
        with float32_products(torch.device("cuda"), False):
            assert (matrices.fp32_precision, convolutions.conv.fp32_precision) == ("ieee", "ieee")
        assert (matrices.fp32_precision, convolutions.conv.fp32_precision) == ("tf32", "ieee")
    finally:
        convolutions.allow_tf32, matrices.allow_tf32 = before


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_every_solver_is_the_same_over_recorded_calls(solver):
    model, made = load_model(device="cpu"), []
    bare = model.denoiser.network
    recorded = GpuNetwork(bare, False, partial(record, made))
    again = replace(model, denoiser=replace(model.denoiser, network=recorded))
    images = torch.rand(2, 3, model.image.size, model.image.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sample = partial(local_sample, images=images, strength=[0.3, 0.6], steps=3, solver=solver, key=SecretKey(bytes(32)))
    assert torch.equal(sample(again), sample(model))
    assert len(made) == 1


def test_what_a_gpu_gets_is_said_by_the_model():
    model = load_model(device="cpu")
    assert (model.precision, model.tf32) == ("float32", False)
    assert not isinstance(model.denoiser.network, GpuNetwork)
    there = on_gpu(model, tf32=True, graphs=True)
    assert there.precision == "tf32"
    assert (there.denoiser.network.tf32, there.denoiser.network._record) == (True, record_graph)
    assert on_gpu(model, tf32=False, graphs=False).denoiser.network._record is None


@pytest.mark.parametrize(
    ("parameters", "side", "batch"),
    [(2_700_000, 32, 256), (14_000_000, 32, 256), (93_600_000, 256, 8), (113_700_000, 256, 7), (2_600_000_000, 128, 1)],
)
def test_batches_of_a_gpu_shrink_with_network_and_image(parameters, side, batch):
    model = replace(load_model(device="cpu"), device=torch.device("cuda"), parameters=parameters)
    model = replace(model, latent_shape=(3, side, side))
    assert default_batch_size(model) == batch
    assert workers_for(model, batch) == 2


# On a GPU: pytest -k cuda

PRECISIONS = [None, torch.float32, torch.float16, torch.bfloat16]


def near(model, count, seed=0):
    images = torch.rand(count, 3, model.image.size, model.image.size, generator=torch.Generator().manual_seed(seed))
    return local_sample(model, images * 2 - 1, strength=0.5, steps=4, key=SecretKey.from_seed(1))


@GPU
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_cuda_graphs_give_what_the_kernels_give_one_by_one(dtype):
    graphs, eager = load_model(device="cuda", dtype=dtype), load_model(device="cuda", dtype=dtype, graphs=False)
    for count in (4, 3, 4):  # an odd batch between
        assert torch.equal(near(graphs, count), near(eager, count))
    assert len(graphs.denoiser.network._recordings) == 2
    assert not eager.denoiser.network._recordings


@GPU
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_cuda_bytes_are_equal_twice_and_between_models(dtype):
    model = load_model(device="cuda", dtype=dtype)
    first = near(model, 8)
    assert torch.equal(near(model, 8), first)
    assert torch.equal(near(load_model(device="cuda", dtype=dtype), 8), first)


@GPU
def test_cuda_float32_is_the_cpu_s_and_tf32_near_it():
    strict, cpu, default = load_model(device="cuda", dtype=torch.float32), load_model(device="cpu"), load_model()
    assert (near(strict, 4) - near(cpu, 4)).abs().max() < 1e-4
    assert (strict.precision, default.precision) == ("float32", "tf32")
    assert (near(default, 4) - near(cpu, 4)).square().mean().sqrt() < 2e-3


@GPU
def test_cuda_graphs_outlive_the_models_before_them():
    for _ in range(3):  # each lets go of its graphs before the next records its own
        model = load_model(device="cuda")
        near(model, 2)
        assert model.denoiser.network._record is record_graph
        del model


@GPU
def test_cuda_calls_on_two_streams_and_in_threads_do_not_mix():
    from concurrent.futures import ThreadPoolExecutor

    model = load_model(device="cuda")
    expected = [near(model, 4, seed) for seed in range(6)]

    def elsewhere(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            return near(model, 4, seed)

    with ThreadPoolExecutor(3) as pool:
        for found in (pool.map(elsewhere, range(6)), pool.map(partial(near, model, 4), range(6))):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
