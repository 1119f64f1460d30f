"""What notebooks show."""

from io import BytesIO

import torch
from PIL import Image

from nearfar.io.notebook import html_table, sheet_png, summary


def test_a_summary_is_one_line():
    assert summary("Thing", {"size": 3, "": "plain"}) == "Thing(size 3, plain)"


def test_names_from_files_are_escaped():
    assert "<script>" not in html_table("Thing", {"source": "<script>alert(1)</script>"})


def test_a_sheet_shows_every_image_enlarged():
    sheet = Image.open(BytesIO(sheet_png(torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 1, 8, 8))))
    assert sheet.size == (8 * 100 - 4, 2 * 100 - 4)
    assert sheet.getpixel((0, 0)) == (0, 0, 0)
    assert sheet.getpixel((100 + 1, 101)) == (255, 255, 255)


def test_no_images_are_no_sheet():
    assert sheet_png(torch.zeros(0, 3, 8, 8)) == b""
