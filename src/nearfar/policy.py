"""What a model's user must be told, and which models are refused unless forced."""

from __future__ import annotations

import re

from nearfar.cards import card_of, hub_name, is_noncommercial
from nearfar.diffusers_folder import DiffusersFolder, Part
from nearfar.errors import UsageError
from nearfar.model import FrozenModel

DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "FlowMatchLCMScheduler")
DISTILLED_WORDS = ("turbo", "lightning", "lcm", "schnell", "distilled")


def refuse_distilled(folder: DiffusersFolder, source: str, network: Part, scheduler: Part, force: bool) -> str:
    """Refuse what looks distilled to a few steps; what to say of it when it is forced, empty for others."""
    reason = distilled_reason(folder, source, network, scheduler)
    if reason and not force:
        raise UsageError(
            f"{source} looks like a distilled few-step model ({reason}), which jumps to the end from a few fixed "
            "levels, so a strength between them means nothing: take the model it was made from, or --force"
        )
    return (
        f"{source} is used by force ({reason}): between a distilled model's levels results mean little"
        if reason
        else ""
    )


def distilled_reason(folder: DiffusersFolder, source: str, network: Part, scheduler: Part) -> str:
    """What shows that a model was distilled to a few steps; empty when nothing does."""
    if scheduler.kind in DISTILLED_SCHEDULERS:
        return f"its scheduler is a {scheduler.kind}"
    if network.config.get("time_cond_proj_dim"):
        return "its network takes the guidance as an input, time_cond_proj_dim"
    if is_turbo(scheduler):
        return "its scheduler is the one of SDXL-Turbo"
    card = card_of(source)
    if card is not None and card.distilled:
        return f"its card, {card.name}"
    names = (source, *(str(part.get("_name_or_path", "")) for part in (folder.index, network.config)))
    words = {word for name in names for word in re.split("[^a-z]+", hub_name(name).rpartition("/")[2].lower())}
    return next((f'"{word}" in its name' for word in DISTILLED_WORDS if word in words), "")


def is_turbo(scheduler: Part) -> bool:
    config = scheduler.config
    trailing = config.get("timestep_spacing") == "trailing" and not config.get("rescale_betas_zero_snr")
    return trailing and scheduler.kind == "EulerAncestralDiscreteScheduler"


def notes_on(model: FrozenModel) -> list[str]:
    """What a user should know before using the model."""
    notes, provenance = [], model.provenance
    card = card_of(provenance.source)
    if is_noncommercial(provenance.licence) or (card is not None and card.commercial is False):
        notes.append(f"the licence of {provenance.source} restricts commercial use: {provenance.licence}")
    if model.settings.get("guidance", 1) > 1:
        notes.append(
            f"guidance {model.settings['guidance']:g} sharpens the model's distribution: results follow the prompt "
            "more, vary less, and are no longer samples of the model; 1 is the model's own"
        )
    return notes
