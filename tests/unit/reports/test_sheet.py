"""The contact sheet: every image is where it belongs, whatever it was."""

import numpy as np
import pytest
from PIL import Image

from nearfar.reports.page import CAPTION, MARGIN, contact_sheet

COLORS = [["red", "lime", "blue"], ["black", "gray", "yellow"]]


def cell_of(sheet, line, column, cell):
    left, top = MARGIN + column * (cell + MARGIN), CAPTION + MARGIN + line * (cell + MARGIN)
    return np.asarray(sheet)[top : top + cell, left : left + cell]


@pytest.mark.parametrize("cell", [8, 96])
def test_every_image_fills_its_cell(cell):
    rows = [[Image.new("RGB", (5 + line, 30), color) for color in row] for line, row in enumerate(COLORS)]
    sheet = contact_sheet(rows, ["a", "b", "c"], cell)
    assert sheet.size == (MARGIN + 3 * (cell + MARGIN), CAPTION + MARGIN + 2 * (cell + MARGIN))
    for line, row in enumerate(COLORS):
        for column, color in enumerate(row):
            expected = np.asarray(Image.new("RGB", (cell, cell), color))
            assert (cell_of(sheet, line, column, cell) == expected).all()


def test_gray_images_are_welcome():
    sheet = contact_sheet([[Image.new("L", (3, 3), 77)]], ["gray"], 10)
    assert (cell_of(sheet, 0, 0, 10) == 77).all()


def test_captions_stand_above_their_columns_and_the_rest_is_white():
    image = Image.new("RGB", (9, 9), "black")
    sheet = np.asarray(contact_sheet([[image, image]], ["", "0.35"], 60))
    caption = sheet[:CAPTION].min(axis=(0, 2))
    assert (caption[: MARGIN + 60] == 255).all()
    assert caption[MARGIN + 60 :].min() < 100
    assert (sheet[CAPTION : CAPTION + MARGIN] == 255).all()
    assert (sheet[:, :MARGIN] == 255).all()
