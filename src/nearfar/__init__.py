"""New images from frozen diffusion models: near given ones, and of domains that the model never saw.

Names are imported when they are first used, so that the command line answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearfar.anonymize import anonymize_folder as anonymize_folder
    from nearfar.audit.audit import audit_folders as audit_folders
    from nearfar.augment import augment_folder as augment_folder
    from nearfar.denoiser import Denoiser as Denoiser
    from nearfar.denoiser import NetworkDenoiser as NetworkDenoiser
    from nearfar.domain import Domain as Domain
    from nearfar.domain_file import load_domain as load_domain
    from nearfar.domain_file import save_domain as save_domain
    from nearfar.enhance_job import enhance_folder as enhance_folder
    from nearfar.enhancement import enhance as enhance
    from nearfar.errors import ImageError as ImageError
    from nearfar.errors import ModelWarning as ModelWarning
    from nearfar.errors import NearfarError as NearfarError
    from nearfar.errors import UsageError as UsageError
    from nearfar.exact_inversion import BDIA as BDIA
    from nearfar.inversion import denoise as denoise
    from nearfar.inversion import invert as invert
    from nearfar.inversion import reconstruct as reconstruct
    from nearfar.latent_space import LatentSpace as LatentSpace
    from nearfar.latent_space import PixelSpace as PixelSpace
    from nearfar.loading import load_model as load_model
    from nearfar.local_sampling import local_sample as local_sample
    from nearfar.model import FrozenModel as FrozenModel
    from nearfar.near_dataset import NearDataset as NearDataset
    from nearfar.near_dataset import NearTransform as NearTransform
    from nearfar.noise import NoiseStream as NoiseStream
    from nearfar.noise import SecretKey as SecretKey
    from nearfar.representation import represent as represent
    from nearfar.schedule import NoiseSchedule as NoiseSchedule
    from nearfar.solver import DDIM as DDIM
    from nearfar.solver import DPMSolverPP as DPMSolverPP
    from nearfar.solver import DPMSolverPPSDE as DPMSolverPPSDE
    from nearfar.solver import FixedPointDDIM as FixedPointDDIM
    from nearfar.solver import Heun as Heun
    from nearfar.solver import Solver as Solver
    from nearfar.solver import solve as solve
    from nearfar.synthesis import synthesise as synthesise
    from nearfar.synthesis import vary as vary

_HOMES = {
    "anonymize": ("anonymize_folder",),
    "audit.audit": ("audit_folders",),
    "augment": ("augment_folder",),
    "denoiser": ("Denoiser", "NetworkDenoiser"),
    "domain": ("Domain",),
    "domain_file": ("load_domain", "save_domain"),
    "enhance_job": ("enhance_folder",),
    "enhancement": ("enhance",),
    "errors": ("ImageError", "ModelWarning", "NearfarError", "UsageError"),
    "exact_inversion": ("BDIA",),
    "inversion": ("denoise", "invert", "reconstruct"),
    "latent_space": ("LatentSpace", "PixelSpace"),
    "loading": ("load_model",),
    "local_sampling": ("local_sample",),
    "model": ("FrozenModel",),
    "near_dataset": ("NearDataset", "NearTransform"),
    "noise": ("NoiseStream", "SecretKey"),
    "representation": ("represent",),
    "schedule": ("NoiseSchedule",),
    "solver": ("DDIM", "DPMSolverPP", "DPMSolverPPSDE", "FixedPointDDIM", "Heun", "Solver", "solve"),
    "synthesis": ("synthesise", "vary"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'nearfar' has no attribute {name!r}")
    return getattr(import_module(f"nearfar.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
