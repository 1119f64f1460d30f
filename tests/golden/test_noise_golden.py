"""The numbers of two fixed streams, as committed: another noise generator would change every output of every user.

numpy does not promise the numbers of `Generator.standard_normal` across its versions (NEP 19). If a new numpy changes
them, this test says so: say so in the commit, then run this file to write the array anew and review the diff.
"""

from pathlib import Path

import numpy as np

from nearfar.diffusion.noise import NoiseStream, SecretKey

GOLDEN = Path(__file__).with_name("noise_streams.npz")


def streams() -> np.ndarray:
    """(draw, image, channel, height, width) for two images under one fixed key."""
    key = SecretKey(bytes(range(32)))
    stream = NoiseStream([bytes.fromhex(key.tag("golden", name)) for name in (b"first", b"second")], (1, 4, 4))
    return np.stack([stream.draw().numpy() for _ in range(3)])


def test_noise_is_what_it_was() -> None:
    # The tails of the ziggurat go through libm's logarithm: the last bit may differ between machines.
    np.testing.assert_allclose(streams(), np.load(GOLDEN)["streams"], rtol=2e-7, atol=0)


if __name__ == "__main__":
    np.savez(GOLDEN, streams=streams())
