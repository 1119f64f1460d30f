"""New images from frozen diffusion models: near given ones, and of domains that the model never saw.

Names are imported when they are first used, so that the command line answers without loading torch.
"""

from importlib import import_module

TYPE_CHECKING = False  # as type checkers know it; a signal in the 80 ms that other imports take would be a traceback

if TYPE_CHECKING:
    from nearfar.audit.audit import audit_folders as audit_folders
    from nearfar.data.near_dataset import NearDataset as NearDataset
    from nearfar.data.near_dataset import NearTransform as NearTransform
    from nearfar.diffusion.bdia import BDIA as BDIA
    from nearfar.diffusion.denoiser import Denoiser as Denoiser
    from nearfar.diffusion.denoiser import NetworkDenoiser as NetworkDenoiser
    from nearfar.diffusion.fixed_point import FixedPointDDIM as FixedPointDDIM
    from nearfar.diffusion.noise import NoiseStream as NoiseStream
    from nearfar.diffusion.noise import SecretKey as SecretKey
    from nearfar.diffusion.schedule import NoiseSchedule as NoiseSchedule
    from nearfar.diffusion.solver import DDIM as DDIM
    from nearfar.diffusion.solver import DPMSolverPP as DPMSolverPP
    from nearfar.diffusion.solver import DPMSolverPPSDE as DPMSolverPPSDE
    from nearfar.diffusion.solver import Heun as Heun
    from nearfar.diffusion.solver import Solver as Solver
    from nearfar.diffusion.solver import solve as solve
    from nearfar.domain.domain import Domain as Domain
    from nearfar.domain.file import load_domain as load_domain
    from nearfar.domain.file import save_domain as save_domain
    from nearfar.domain.synthesis import synthesize as synthesize
    from nearfar.domain.synthesis import vary as vary
    from nearfar.errors import ImageError as ImageError
    from nearfar.errors import ModelWarning as ModelWarning
    from nearfar.errors import NearfarError as NearfarError
    from nearfar.errors import UsageError as UsageError
    from nearfar.jobs.anonymize import anonymize_folder as anonymize_folder
    from nearfar.jobs.augment import augment_folder as augment_folder
    from nearfar.jobs.enhance import enhance_folder as enhance_folder
    from nearfar.jobs.evolve import evolve as evolve
    from nearfar.models.loading import load_model as load_model
    from nearfar.models.model import FrozenModel as FrozenModel
    from nearfar.models.model import LatentSpace as LatentSpace
    from nearfar.models.model import PixelSpace as PixelSpace
    from nearfar.sampling.enhancement import enhance as enhance
    from nearfar.sampling.inversion import denoise as denoise
    from nearfar.sampling.inversion import invert as invert
    from nearfar.sampling.inversion import reconstruct as reconstruct
    from nearfar.sampling.local_sampling import local_sample as local_sample
    from nearfar.sampling.representation import represent as represent

_HOMES = {
    "audit.audit": ("audit_folders",),
    "data.near_dataset": ("NearDataset", "NearTransform"),
    "diffusion.bdia": ("BDIA",),
    "diffusion.denoiser": ("Denoiser", "NetworkDenoiser"),
    "diffusion.fixed_point": ("FixedPointDDIM",),
    "diffusion.noise": ("NoiseStream", "SecretKey"),
    "diffusion.schedule": ("NoiseSchedule",),
    "diffusion.solver": (
        "DDIM",
        "DPMSolverPP",
        "DPMSolverPPSDE",
        "Heun",
        "Solver",
        "solve",
    ),
    "domain.domain": ("Domain",),
    "domain.file": ("load_domain", "save_domain"),
    "domain.synthesis": ("synthesize", "vary"),
    "errors": ("ImageError", "ModelWarning", "NearfarError", "UsageError"),
    "jobs.anonymize": ("anonymize_folder",),
    "jobs.augment": ("augment_folder",),
    "jobs.enhance": ("enhance_folder",),
    "jobs.evolve": ("evolve",),
    "models.loading": ("load_model",),
    "models.model": ("FrozenModel", "LatentSpace", "PixelSpace"),
    "sampling.enhancement": ("enhance",),
    "sampling.inversion": ("denoise", "invert", "reconstruct"),
    "sampling.local_sampling": ("local_sample",),
    "sampling.representation": ("represent",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("nearfar")
    if name not in _HOME:
        raise AttributeError(f"module 'nearfar' has no attribute {name!r}")
    return getattr(import_module(f"nearfar.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
