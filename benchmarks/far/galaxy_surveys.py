"""Galaxies near those of a catalog, and of another survey through a network that never saw it: their physics kept?

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python -m benchmarks.far.galaxy_surveys WHEEL [--sheets FOLDER]

WHEEL: galaxygrad's wheel, unpacked (`pip download --no-deps galaxygrad==0.1.8`: later ones hold no networks); its
networks of HSC and ZTF galaxies at 32 pixels are converted and read as a user's would be. No catalog may be shipped, so
each survey's is drawn from its own network: 32 galaxies, ancestral steps from pure noise. Fluxes go in and come out by
the networks' own value transform.

* near: local sampling through the survey's own network, at several levels of noise (sigma in the network's units).
* through: the same through the other survey's network, for which the galaxies are of an unseen domain; and back: what
  came out, through the survey's own network at the same level.
* inverted: to noise and back without drawing any, through both: what a network can keep at all.
* fresh: other galaxies of the same catalog, what two samples of one survey differ by.

Three figures of each galaxy, over all its pixels with the median of the edge taken off: total flux, half-light radius
(pixels around the centroid, weighted by flux), ellipticity (1 - b/a of the second moments within three such radii). For
each set: medians, the distance of its distribution to the originals' (Kolmogorov and Smirnov's, the largest difference
of the distribution functions, and its p), the median change of a galaxy's own figure, and rank correlation with it.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp, spearmanr
from torch import Tensor

from benchmarks.support.common import write_result
from nearfar.diffusion.noise import SecretKey
from nearfar.diffusion.solver import DDIM
from nearfar.errors import ModelWarning
from nearfar.io.stacks import own_values
from nearfar.models.cards import card_of
from nearfar.models.loading import load_model
from nearfar.models.model import FrozenModel
from nearfar.models.original.checkpoints import convert
from nearfar.models.original.network import save_converted
from nearfar.sampling.inversion import reconstruct
from nearfar.sampling.local_sampling import local_sample

COUNT, STEPS, CATALOG_STEPS, SHOWN = 32, 20, 60, 12
SIGMAS = (0.1, 0.3, 1.0)
SURVEYS = ("hsc", "ZTF")
Fluxes = NDArray[np.float64]


def load_survey(wheel: Path, survey: str) -> FrozenModel:
    """A survey's network, converted with its card's options and read from the folder."""
    name = f"eqx_{survey}_ScoreNet32.eqx"
    card = card_of(name)
    assert card is not None
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        save_converted(convert(next(wheel.rglob(name)), **card.checkpoint), Path(place) / survey)
        return load_model(Path(place) / survey, "cpu")


def draw_catalog(model: FrozenModel, seed: int) -> Fluxes:
    """Galaxies of the network's own survey, drawn from noise alone."""
    blank, key = torch.zeros(COUNT, 1, model.image.size, model.image.size), SecretKey.from_seed(seed)
    options = {"strength": 1.0, "steps": CATALOG_STEPS, "solver": DDIM(1.0), "variant": list(range(COUNT))}
    return to_fluxes(model, local_sample(model, blank, key=key, **options))


def to_fluxes(model: FrozenModel, images: Tensor) -> Fluxes:
    return own_values(model.image).to_values(images)


def near(model: FrozenModel, fluxes: Fluxes, sigma: float) -> Fluxes:
    images = own_values(model.image).to_image(fluxes)
    key = SecretKey.from_seed(1)
    return to_fluxes(model, local_sample(model, images, sigma=sigma, steps=STEPS, solver=DDIM(1.0), key=key))


def there_and_back(model: FrozenModel, fluxes: Fluxes, sigma: float) -> Fluxes:
    images = own_values(model.image).to_image(fluxes)
    return to_fluxes(model, reconstruct(model, images, sigma=sigma, steps=STEPS, solver=DDIM()))


def physics(fluxes: Fluxes) -> dict[str, NDArray[np.float64]]:
    """Total flux, half-light radius in pixels and ellipticity of each galaxy; fluxes: (galaxy, 1, height, width)."""
    figures = np.array([one_galaxy(galaxy[0]) for galaxy in fluxes])
    return dict(zip(("flux", "half_light_radius", "ellipticity"), figures.T, strict=True))


def one_galaxy(galaxy: NDArray[np.float64]) -> tuple[float, float, float]:
    edge = np.concatenate([galaxy[0], galaxy[-1], galaxy[1:-1, 0], galaxy[1:-1, -1]])
    light = galaxy - np.median(edge)
    weights = light.clip(0)
    rows, columns = np.indices(galaxy.shape)
    row, column = (float((weights * axis).sum() / weights.sum()) for axis in (rows, columns))
    distance = np.hypot(rows - row, columns - column)
    order = np.argsort(distance, axis=None)
    grown = weights.ravel()[order].cumsum()
    radius = float(distance.ravel()[order][np.searchsorted(grown, grown[-1] / 2)])
    inner = np.where(distance <= max(3 * radius, 2.0), weights, 0)
    moments = np.cov(np.stack([rows.ravel(), columns.ravel()]), aweights=inner.ravel(), ddof=0)
    small, large = np.linalg.eigvalsh(moments)
    return float(light.sum()), radius, float(1 - np.sqrt(max(small, 0) / large))


def compared(originals: Fluxes, others: Fluxes, paired: bool = True) -> dict[str, Any]:
    """Each figure of the others beside the originals'."""
    before, after = physics(originals), physics(others)
    return {name: one_figure(before[name], after[name], paired) for name in before}


def one_figure(before: NDArray[np.float64], after: NDArray[np.float64], paired: bool) -> dict[str, float]:
    test = ks_2samp(before, after)
    found = {"median": float(np.median(after)), "originals_median": float(np.median(before))}
    found |= {"ks": float(test.statistic), "p": float(test.pvalue)}
    if paired:
        found |= {"median_change": float(np.median(np.abs(after - before)))}
        found |= {"rank_correlation": float(spearmanr(before, after).statistic)}
    return {name: round(value, 4) for name, value in found.items()}


def measure(models: dict[str, FrozenModel], survey: str, sheets: Path | None) -> dict[str, Any]:
    """One survey's catalog, through its own network and the other's."""
    own, other = models[survey], models[next(name for name in SURVEYS if name != survey)]
    catalog = draw_catalog(own, 0)
    found: dict[str, Any] = {"fresh": compared(catalog, draw_catalog(own, 7), paired=False)}
    rows = [catalog[:SHOWN]]
    for sigma in SIGMAS:
        foreign = near(other, catalog, sigma)
        made = {"near": near(own, catalog, sigma), "through": foreign, "and_back": near(own, foreign, sigma)}
        rows += [one[:SHOWN] for one in made.values()]
        found[f"sigma {sigma:g}"] = {name: compared(catalog, one) for name, one in made.items()}
    inverted = {"own": there_and_back(own, catalog, 3.0), "other": there_and_back(other, catalog, 3.0)}
    found["inverted at sigma 3"] = {name: compared(catalog, one) for name, one in inverted.items()}
    if sheets:
        draw_sheet(sheets / f"galaxies_{survey}.png", [*rows, *(one[:SHOWN] for one in inverted.values())])
    return found


def draw_sheet(path: Path, rows: list[Fluxes]) -> None:
    """Every row a set, by the same stretch: the root of the flux up to the first row's 99.8th percentile."""
    top = np.quantile(rows[0], 0.998)
    shown = np.concatenate([np.concatenate(list(row[:, 0]), 1) for row in rows])
    gray = np.round(255 * np.sqrt((shown / top).clip(0, 1))).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gray).resize((2 * gray.shape[1], 2 * gray.shape[0])).save(path)


def main(wheel: Path, sheets: Annotated[Path | None, typer.Option()] = None) -> None:
    models = {survey: load_survey(wheel, survey) for survey in SURVEYS}
    found = {survey: measure(models, survey, sheets) for survey in SURVEYS}
    settings = {"galaxies": COUNT, "steps": STEPS, "catalog_steps": CATALOG_STEPS, "networks": "galaxygrad 0.1.8"}
    write_result("galaxy_surveys", {"settings": settings, **found})


if __name__ == "__main__":
    typer.run(main)
