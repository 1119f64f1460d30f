"""What was lost: each output beside its original, and all outputs beside real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from nearfar.audit.pairs import Pairs, unrelated
from nearfar.metrics.features import FeatureNetwork, perceptual_distance
from nearfar.metrics.intervals import NORMAL, Figure, bootstrap
from nearfar.metrics.sets import NEIGHBORS, frechet_distance, kernel_distance, precision_recall

RESAMPLES, SPLITS, LEAST = 1000, 8, 2 * (NEIGHBORS + 1)
"""Of the bootstrap; of the originals in halves; images from which distances of sets are measured."""

Vectors = Float64[Tensor, "_ numbers"]
Values = Float64[Tensor, " outputs"]
Distances = dict[str, tuple[float, float | None]]
"""By name, a value and its standard error where there is one."""


def fidelity(
    pairs: Pairs, distance: Values | None, network: FeatureNetwork, strange: tuple[float, float] | None
) -> list[Figure]:
    """PSNR and SSIM at the originals' own sizes, and the perceptual distance of each pair, where the network has any.

    distance: as `pair_distances` gives it. strange: as `compare_strangers` does. The chance is what outputs reach with
    an original that is not theirs.
    """
    peak, structure = strange or (None, None)
    note = f"{pairs.resized} outputs had another size and were resized" if pairs.resized else ""
    figures = [
        of_pairs("PSNR, dB", pairs.psnr, pairs.of, peak, note),
        of_pairs("SSIM", pairs.ssim, pairs.of, structure, note),
    ]
    if distance is None:
        return figures
    other = unrelated(pairs)
    apart = None if other is None else perceptual_distance(network, pairs.originals[other], pairs.outputs)
    floor = None if apart is None else apart.mean().item()
    note = "0 (seen the same) to 4; unit feature vectors at several depths; not LPIPS"
    return [*figures, of_pairs("perceptual distance", distance, pairs.of, floor, note, network.name)]


def pair_distances(pairs: Pairs, network: FeatureNetwork) -> Values | None:
    """The perceptual distance of each output from its original; nothing for a network without depths (pixels)."""
    if not network.look(network.seen(pairs.originals[:1])).maps:
        return None
    return perceptual_distance(network, pairs.originals[pairs.of], pairs.outputs)


def of_pairs(
    name: str,
    values: Values,
    of: Int64[Tensor, " outputs"],
    chance: float | None,
    note: str = "",
    network: str = "",
) -> Figure:
    """The mean over pairs, its interval, and the deviation from pair to pair in the note.

    Interval: percentile bootstrap of 1000 resamples of the originals, since outputs of one original go together; none
    for one original.
    """
    spread = f"deviation {values.std().item():.3g}" if len(values) > 1 else "one pair"
    alone = int(of.max()) == 0
    low, high = (None, None) if alone else bootstrap(values.numpy(), of.numpy(), 0.025, RESAMPLES)
    text = "; ".join(part for part in (spread, note) if part)
    return Figure(name, values.mean().item(), len(values), low, high, chance, network, note=text)


def set_figures(
    originals: Vectors, outputs: Vectors, of: Int64[Tensor, " outputs"], reference: Vectors | None, network: str
) -> list[Figure]:
    """Fréchet and kernel distance, precision and recall of the outputs against real images, by their features.

    With a reference folder its images are the real ones, and the chance is what the originals reach against them. Else
    the outputs of one half of the originals stand against the other half, the mean over 8 random halves, and the chance
    is what the first half itself reaches: a set may not be compared with the images it was made from. One output of
    each original takes part, since these figures depend on counts. None for fewer than 8 images in either set.
    """
    first = torch.stack([(of == number).nonzero()[0, 0] for number in range(len(originals))])
    made = outputs[first]
    splits = [(made, originals, reference)] if reference is not None else halves(made, originals)
    if min(min(len(one), len(real)) for one, _, real in splits) < LEAST:
        return []
    against = "the reference" if reference is not None else f"the other half of the originals, {SPLITS} splits"
    measured = [(compare_sets(real, one), compare_sets(real, own)) for one, own, real in splits]
    note = f"{len(splits[0][0])} outputs against {len(splits[0][2])} images of {against}"
    return [set_figure(name, measured, len(splits[0][0]), network, note) for name in measured[0][0]]


def halves(made: Vectors, originals: Vectors) -> list[tuple[Vectors, Vectors, Vectors]]:
    """Outputs of one half of the originals, that half, and the other half."""
    generator = torch.Generator().manual_seed(0)
    half = len(originals) // 2
    orders = [torch.randperm(len(originals), generator=generator) for _ in range(SPLITS)]
    return [(made[order[:half]], originals[order[:half]], originals[order[half:]]) for order in orders]


def compare_sets(real: Vectors, other: Vectors) -> Distances:
    kernel, among = kernel_distance(real, other), precision_recall(real, other)
    return {
        "Fréchet distance": (frechet_distance(real, other), None),
        "kernel distance": (kernel.value, kernel.deviation),
        "precision": (among.precision, None),
        "recall": (among.recall, None),
    }


def set_figure(
    name: str, measured: Sequence[tuple[Distances, Distances]], count: int, network: str, note: str
) -> Figure:
    """The mean over splits of the outputs' distance; chance: that of originals. Interval: of the standard errors."""
    value, chance = (sum(one[name][0] for one in side) / len(side) for side in zip(*measured, strict=True))
    errors = [error for outputs, _ in measured if (error := outputs[name][1]) is not None]
    error = NORMAL * sum(errors) / len(errors) if errors else None
    low, high = (None, None) if error is None else (value - error, value + error)
    return Figure(name, value, count, low, high, chance, network, note=note)
