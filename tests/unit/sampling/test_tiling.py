"""A tiled denoiser: where the denoiser looks no further than its pixel, tiles change nothing; else they do not show."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.errors import UsageError
from nearfar.sampling.tiling import SHIFTS, TiledDenoiser, first_places, tile_count
from oracle import GaussianDenoiser

SCHEDULE = NoiseSchedule.variance_preserving(
    torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
)
GAUSSIAN = GaussianDenoiser(SCHEDULE, torch.tensor(0.2), torch.tensor(0.3))
few = settings(max_examples=12, deadline=None)
lengths = st.integers(6, 40)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def times(count):
    return torch.linspace(50, 950, count, dtype=torch.float64)


class Watched:
    """The Gaussian oracle, which remembers the shape and the times of its calls."""

    schedule = SCHEDULE

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t):
        self.calls.append((tuple(x_t.shape), t))
        return GAUSSIAN(x_t, t)


class OwnPlace:
    """A denoiser that says where in its tile a pixel lies, the worst that can be: it knows nothing of the canvas."""

    schedule = SCHEDULE

    def __call__(self, x_t, t):
        return torch.linspace(-1, 1, x_t.shape[3]).expand(x_t.shape)


@given(lengths, lengths, st.integers(1, 3), st.integers(1, 7))
@few
def test_tiles_give_what_the_whole_canvas_gives(height, width, count, batch_size):
    x_t, t = noise(count, 2, height, width), times(count)
    tiled = TiledDenoiser(GAUSSIAN, (6, 5), batch_size)(x_t, t)
    torch.testing.assert_close(tiled, GAUSSIAN(x_t, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 32), (5, 7), (32, 1), (40, 1)])
def test_every_call_has_the_same_shape_and_each_tile_its_canvas_time(batch_size, calls):
    watched = Watched()
    TiledDenoiser(watched, (8, 8), batch_size)(noise(2, 3, 18, 20), times(2))
    assert tile_count((18, 20), (8, 8)) == 16
    assert [shape for shape, _ in watched.calls] == [(batch_size, 3, 8, 8)] * calls
    asked = torch.cat([t for _, t in watched.calls])[:32]
    assert asked.tolist() == [50.0] * 16 + [950.0] * 16


def test_a_canvas_does_not_depend_on_its_neighbors():
    x_t, t = noise(3, 2, 17, 12), times(3)
    denoiser = TiledDenoiser(GAUSSIAN, (8, 8), 4)
    assert torch.equal(denoiser(x_t, t)[1:2], denoiser(x_t[1:2], t[1:2]))


def test_what_a_tile_says_at_its_edge_has_next_to_no_weight():
    tile = 16
    whole = TiledDenoiser(OwnPlace(), (tile, tile), 8)(noise(1, 1, tile, 5 * tile), times(1))[0, 0, 0]
    cut = OwnPlace()(noise(1, 1, tile, tile), times(1))[0, 0, 0].repeat(5)
    assert cut.diff().abs().max() == 2  # side by side: from 1 back to -1 in one pixel
    assert whole.diff().abs().max() < 1  # over the four pixels that tiles have in common


@given(st.integers(0, 60), st.integers(2, 24), st.floats(0, 1, exclude_max=True))
def test_tiles_cover_a_side_and_overlap_wherever_their_grid_lies(more, tile, shift):
    begins = first_places(tile + more, tile, shift)
    assert begins[0] == 0
    assert begins[-1] == more
    assert all(0 <= after - before <= max(1, int(tile * 0.75)) for before, after in pairwise(begins))
    assert len(begins) == len(first_places(tile + more, tile, 0.0))


def test_over_a_solvers_steps_every_place_is_an_edge_and_a_middle():
    times = torch.linspace(0, 999, 20, dtype=torch.float64).tolist()
    begins = torch.tensor([first_places(1024, 32, time * SHIFTS[0] % 1)[20] % 24 for time in times])
    assert len(begins.unique()) > 12


def test_a_canvas_smaller_than_a_tile_is_refused():
    with pytest.raises(UsageError, match=r"canvases must be at least \(8, 8\), got \(8, 7\): pad them"):
        TiledDenoiser(GAUSSIAN, (8, 8), 4)(noise(1, 1, 8, 7), times(1))
