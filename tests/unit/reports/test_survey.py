"""Figures and sections of a survey: what they show is what was found."""

import re
from dataclasses import replace

import pytest
import torch

from nearfar.diffusion.schedule import NoiseSchedule
from nearfar.domain.survey import Survey, compare, propose
from nearfar.latents.normality import rotations
from nearfar.reports.page import Report
from nearfar.reports.survey import (
    distances_figure,
    proposal,
    separation_figure,
    some_of,
    spectrum_figure,
    survey_sections,
)

COUNT, STRENGTHS = 12, (0.2, 0.4, 0.6, 0.8)


@pytest.fixture(scope="module")
def found():
    """Of clouds that come nearer to each other from level to level."""
    generator = torch.Generator().manual_seed(0)
    frames, schedule = rotations(COUNT, generator), NoiseSchedule.flow()
    levels = []
    for strength in STRENGTHS:
        latents = torch.randn(2 * COUNT, 2, 8, 8, generator=generator)
        latents[:COUNT] += 1 - strength
        levels.append(compare(latents, COUNT, strength, schedule, frames, generator))
    return Survey("abc", COUNT, 20, 0, tuple(levels), *propose(levels))


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_the_curves_are_the_numbers(found):
    norms = lines(distances_figure(found).axes[0])
    assert norms["unseen"] == [level.unseen.geometry.norm.mean for level in found.levels]
    assert norms["the model's own"] == [level.own.geometry.norm.mean for level in found.levels]
    accuracy, centers, roundness, p_values = separation_figure(found).axes
    assert [level.separation.accuracy for level in found.levels] in lines(accuracy).values()
    assert [level.separation.quarter_power for level in found.levels] in lines(centers).values()
    assert lines(roundness)["unseen, shrinkage"] == [level.unseen.geometry.shrinkage for level in found.levels]
    assert lines(p_values)["centers differ"] == [level.separation.distance_p for level in found.levels]
    low, middle, high = spectrum_figure(found).axes
    variance = torch.tensor(found.levels[0].unseen.spectrum.variance).mean(0)[1:]
    torch.testing.assert_close(torch.tensor(lines(low)["unseen"], dtype=variance.dtype), variance)
    assert [axes.get_title() for axes in (low, middle, high)] == ["strength 0.2", "strength 0.6", "strength 0.8"]


def test_the_proposed_level_is_marked(found):
    assert found.proposed is not None
    marked = [line for line in separation_figure(found).axes[0].get_lines() if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in marked] == [found.proposed]
    none = replace(found, proposed=None)
    assert not [line for line in separation_figure(none).axes[0].get_lines() if line.get_linestyle() == ":"]


@pytest.mark.slow
def test_sections_say_what_is_proposed_and_why(found):
    text = Report("survey").add(*survey_sections(found)).html()
    assert f"Level to work at: strength {found.proposed:g}, because {found.reason}." in text
    assert text.count("<svg") == 3
    assert len(re.findall("<tr>", text)) == 1 + len(STRENGTHS)
    assert all(f"<dt>Strength {level.strength:g}</dt><dd>{level.verdict}.</dd>" in text for level in found.levels)
    assert proposal(replace(found, proposed=None, reason="of it")) == "Level to work at: none, because of it."


def test_few_levels_are_all_shown(found):
    assert some_of(found.levels[:1]) == [found.levels[0]]
    assert some_of(found.levels[:2]) == list(found.levels[:2])
    single = replace(found, levels=found.levels[:1])
    assert len(spectrum_figure(single).axes) == 1
