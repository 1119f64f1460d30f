"""Gaussian spread by frequency: a color matrix for each coefficient of the cosine transform, shrunk by radial band.

`Structured` has all correlations of the coarse layout, and the spectral family for everything finer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearfar.latents.covariance import (
    LEAST,
    Function,
    Moments,
    deviations_of,
    gains,
    intensity,
    pixel_variance,
    sampling_noise,
    squared,
)
from nearfar.tensors import Latents

Colors = Float64[Tensor, "rows columns places places"]
Bands = Int64[Tensor, "rows columns"]

SIDE = 8
"""Of the coarse layout, in half cycles per image. Its matrix has (places SIDE^2) rows: 192 for three channels."""

Square = Float64[Tensor, "coarse coarse"]


@dataclass(frozen=True, eq=False)
class Spectral:
    """A color matrix for each frequency, in the orthonormal basis of the cosine transform (DCT-II). From 2 latents.

    Exact for domains that look alike everywhere and are continued by reflection at the borders; it knows nothing of
    where in the image something is. Each matrix is drawn toward the average of its radial band by that band's
    `shrinkage`, after the average was drawn toward the scalar by `band_shrinkage` (both in [0, 1], one per band).

    variances: eigenvalues of each color matrix. colors: its eigenvectors, in columns.
    """

    variances: Moments
    colors: Colors
    shrinkage: Float64[Tensor, " bands"]
    band_shrinkage: Float64[Tensor, " bands"]

    @classmethod
    def fit(cls, latents: Latents) -> Spectral:
        matrices = color_matrices(latents)
        scalar = matrices.diagonal(dim1=-2, dim2=-1).mean()
        bands = radial_bands(*matrices.shape[:2])
        noise = sampling_noise(matrices, len(latents))
        averages, band_shrinkage = band_averages(matrices, noise, bands, scalar)
        targets = averages[bands]
        share = intensity(total(noise, bands), total(squared(matrices - targets), bands))
        shrunk = torch.lerp(matrices, targets, share[bands][..., None, None])
        values, colors = torch.linalg.eigh(shrunk)
        return cls(values.clamp(min=LEAST * scalar.item()).permute(2, 0, 1), colors, share, band_shrinkage)

    def apply(self, function: Function, deviations: Latents) -> Latents:
        turned = torch.einsum("nchw,hwck->nkhw", cosines(deviations), self.colors.to(deviations))
        scaled = gains(function, self.variances, deviations) * turned
        return inverse_cosines(torch.einsum("nkhw,hwck->nchw", scaled, self.colors.to(deviations)))


def color_matrices(latents: Latents) -> Colors:
    """Unbiased covariance of the channels at each frequency of the cosine transform."""
    pixel_variance(latents)
    parts = [torch.einsum("nchw,ndhw->hwcd", *[cosines(part)] * 2) for part in deviations_of(latents)]
    return torch.stack(parts).sum(0) / (len(latents) - 1)


def band_averages(
    matrices: Colors, noise: Float64[Tensor, "rows columns"], bands: Bands, scalar: Float64[Tensor, ""]
) -> tuple[Float64[Tensor, "bands places places"], Float64[Tensor, " bands"]]:
    """Average matrix of each radial band, drawn toward the scalar by as much as it is noise; and that share."""
    sizes = bands.flatten().bincount()
    sums = matrices.new_zeros(len(sizes), *matrices.shape[2:]).index_add_(0, bands.flatten(), matrices.flatten(0, 1))
    averages, target = sums / sizes[:, None, None], scalar * torch.eye(matrices.shape[-1], dtype=torch.float64)
    share = intensity(total(noise, bands) / sizes**2, squared(averages - target))
    return torch.lerp(averages, target, share[:, None, None]), share


def total(values: Float64[Tensor, "rows columns"], bands: Bands) -> Float64[Tensor, " bands"]:
    return bands.flatten().bincount(values.flatten())


def radial_bands(rows: int, columns: int) -> Bands:
    """The band of each coefficient of the cosine transform: its frequency in half cycles along the longer side."""
    along_rows, along_columns = (torch.arange(side, dtype=torch.float64) / side for side in (rows, columns))
    return (torch.hypot(along_rows[:, None], along_columns[None]) * max(rows, columns)).round().long()


def cosine_basis(side: int, like: Tensor) -> Float[Tensor, "side side"]:
    """Orthonormal cosine transform (DCT-II) as a matrix: one frequency per row."""
    index = torch.arange(side, dtype=torch.float64)
    basis = (index[:, None] * (index + 0.5) * (math.pi / side)).cos() * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.to(like)


def cosines(latents: Latents) -> Latents:
    """Two-dimensional cosine transform of each channel."""
    rows, columns = (cosine_basis(side, latents) for side in latents.shape[2:])
    return rows @ latents @ columns.T


def inverse_cosines(coefficients: Latents) -> Latents:
    rows, columns = (cosine_basis(side, coefficients) for side in coefficients.shape[2:])
    return rows.T @ coefficients @ columns


@dataclass(frozen=True, eq=False)
class Structured:
    """The lowest frequencies with the covariance that the latents show, drawn toward the spectral one. From 2 latents.

    Where things are in the image lies in correlations between low frequencies, which `Spectral` has not. Their
    covariance is `(1 - shrinkage) S_empirical + shrinkage S_spectral`, with Ledoit and Wolf's intensity measured on
    latents whitened by the spectral family, so that a weak frequency counts as much as a strong one.

    spectral: for all other frequencies. directions, values: eigenvectors of the coarse layout, in columns, and their
    variances. rows, columns: how many of each belong to it.
    """

    spectral: Spectral
    directions: Square
    values: Float64[Tensor, " coarse"]
    rows: int
    columns: int
    shrinkage: float

    @classmethod
    def fit(cls, latents: Latents, side: int = SIDE) -> Structured:
        rows, columns = (min(side, length) for length in latents.shape[2:])
        spectral = Spectral.fit(latents)
        parts = [coarse(cosines(part), rows, columns) for part in deviations_of(latents)]
        shown = torch.stack([part.T @ part for part in parts]).sum(0) / (len(latents) - 1)
        root, whitening = (coarse_matrix(spectral, f, rows, columns) for f in (torch.sqrt, torch.rsqrt))
        white, none = whitening @ shown @ whitening, torch.eye(len(shown), dtype=torch.float64)
        share = intensity(sampling_noise(white, len(latents)), squared(white - none))
        values, directions = torch.linalg.eigh(root @ torch.lerp(white, none, share) @ root)
        return cls(spectral, directions, values, rows, columns, share.item())

    def apply(self, function: Function, deviations: Latents) -> Latents:
        frequencies = cosines(self.spectral.apply(function, deviations))
        layout = coarse(cosines(deviations), self.rows, self.columns)
        directions = self.directions.to(deviations)
        scaled = gains(function, self.values[:, None, None], deviations)[..., 0, 0] * (layout @ directions)
        place = frequencies[:, :, : self.rows, : self.columns]
        place.copy_((scaled @ directions.T).view_as(place))
        return inverse_cosines(frequencies)


def coarse(frequencies: Latents, rows: int, columns: int) -> Float[Tensor, "batch coarse"]:
    """The lowest frequencies of each latent in a row."""
    return frequencies[:, :, :rows, :columns].flatten(1)


def coarse_matrix(spectral: Spectral, function: Function, rows: int, columns: int) -> Square:
    """A function of the spectral covariance as a matrix over the coarse layout."""
    colors, values = spectral.colors[:rows, :columns], function(spectral.variances[:, :rows, :columns])
    one, other = (torch.eye(length, dtype=torch.float64) for length in (rows, columns))
    matrix = torch.einsum("hwck,khw,hwdk,hx,wy->chwdxy", colors, values, colors, one, other)
    return matrix.reshape(values.numel(), values.numel())
