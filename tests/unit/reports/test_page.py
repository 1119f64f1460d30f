"""Pages that need nothing beside them: what is put in comes out again, and text stays text."""

import base64
import io
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from nearfar.reports.page import Report, heading, paragraph, picture, plot, table

NASTY = """<script>alert("1")</script> & 'quotes' é"""


class Reader(HTMLParser):
    """Elements with their attributes, and the text of a page, as a browser would see them."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def tags(self):
        return [tag for tag, _ in self.elements]


def curve():
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1, 2], [1, 3, 2], label=NASTY)
    return figure


def test_text_stays_text_wherever_it_is_put():
    content = Report(NASTY).add(heading(NASTY), paragraph(NASTY), table([NASTY], [[NASTY]])).html()
    read = Reader(content)
    assert "script" not in read.tags()
    assert read.text.count(NASTY) == 6  # title and h1, heading, paragraph, two cells


def test_sections_stand_in_their_order_in_one_document():
    content = Report("t").add(paragraph("first"), heading("second")).add(paragraph("third")).html()
    assert content.startswith("<!doctype html>")
    read = Reader(content)
    assert [tag for tag in read.tags() if tag in ("h1", "p", "h2")] == ["h1", "p", "h2", "p"]
    assert [text for text in read.text if text in ("first", "second", "third")] == ["first", "second", "third"]


def test_a_table_has_its_header_and_every_cell():
    read = Reader(table(["name", "dB"], [["a.png", 31.5], ["b.png", None]]))
    assert read.tags().count("tr") == 3
    assert (read.tags().count("th"), read.tags().count("td")) == (2, 4)
    assert [text for text in read.text if text.strip()] == ["name", "dB", "a.png", "31.5", "b.png", "None"]


def test_a_picture_is_in_the_page_to_the_last_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    ((tag, attributes),) = Reader(picture(Image.fromarray(pixels), NASTY)).elements
    assert (tag, attributes["alt"], attributes["width"]) == ("img", NASTY, "7")
    head, _, encoded = attributes["src"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert (np.asarray(image) == pixels).all()


def test_a_plot_is_a_drawing_in_the_page_the_same_each_time():
    drawing = plot(curve(), NASTY)
    assert drawing == plot(curve(), NASTY)
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"] == NASTY
    assert "date" not in drawing.lower()


def test_nothing_is_fetched_from_elsewhere():
    content = Report("t").add(picture(Image.new("L", (2, 2)), "gray"), plot(curve())).html()
    references = [
        value for _, attributes in Reader(content).elements for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]  # fmt: skip
    assert references
    assert all(value.startswith(("data:", "#")) for value in references)
