"""Gaussian spread with all correlations of the coarse layout, and the spectral family for everything finer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearfar.spectral import Spectral, cosines, inverse_cosines
from nearfar.spread import Eigenvalues, Function, deviations_of, gains, intensity, sampling_noise, squared
from nearfar.tensors import Latents

SIDE = 8
"""Of the coarse layout, in half cycles per image. Its matrix has (places SIDE^2) rows: 192 for three channels."""

Square = Float64[Tensor, "coarse coarse"]


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

    def eigenvalues(self) -> Eigenvalues:
        finer = torch.ones_like(self.spectral.variances, dtype=torch.bool)
        finer[:, : self.rows, : self.columns] = False
        values = torch.cat([self.values, self.spectral.variances[finer]])
        return Eigenvalues(values, torch.ones(len(values), dtype=torch.int64))


def coarse(frequencies: Latents, rows: int, columns: int) -> Float[Tensor, "batch coarse"]:
    """The lowest frequencies of each latent in a row."""
    return frequencies[:, :, :rows, :columns].flatten(1)


def coarse_matrix(spectral: Spectral, function: Function, rows: int, columns: int) -> Square:
    """A function of the spectral covariance as a matrix over the coarse layout."""
    colours, values = spectral.colours[:rows, :columns], function(spectral.variances[:, :rows, :columns])
    one, other = (torch.eye(length, dtype=torch.float64) for length in (rows, columns))
    matrix = torch.einsum("hwck,khw,hwdk,hx,wy->chwdxy", colours, values, colours, one, other)
    return matrix.reshape(values.numel(), values.numel())
