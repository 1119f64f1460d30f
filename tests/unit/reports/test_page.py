"""Pages that need nothing beside them: what is put in comes out again, and text stays text."""

import base64
import io
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from nearfar.reports.charts import Bar, bars, drawing, plot
from nearfar.reports.page import Report, answers, folded, heading, paragraph, picture, table

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
    _, (tag, attributes) = Reader(picture(Image.fromarray(pixels), NASTY)).elements
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


def test_what_few_need_is_folded_and_answers_are_terms():
    content = Report("t").add(answers([("who", NASTY)]), folded(NASTY, paragraph("inside"))).html()
    read = Reader(content)
    assert [tag for tag in read.tags() if tag in ("dl", "dt", "dd", "details", "summary")] == [
        *("dl", "dt", "dd"),
        *("details", "summary"),
    ]
    assert read.text.count(NASTY) == 2
    assert "script" not in read.tags()


def test_a_page_has_both_schemes_and_fits_a_phone():
    content = Report("t").html()
    assert "prefers-color-scheme: dark" in content
    assert 'name="viewport"' in content


def test_bars_say_in_words_what_they_draw():
    drawn = bars([Bar(NASTY, 0.5, 0.4, 0.6, 0.01, 1.0), Bar("none", 0.0)], "Shares.")
    read = Reader(drawn)
    labels = [attributes["aria-label"] for tag, attributes in read.elements if tag == "svg"]
    assert labels == [f"{NASTY}: 50 %, interval from 40 %, to 60 %, chance 1 %, untouched 100 %", "none: 0 %"]
    shares = [float(one["width"]) for tag, one in read.elements if tag == "rect" and one["class"] == "share"]
    assert shares == [50, 0]
    assert "script" not in read.tags()


def test_the_text_of_a_chart_can_be_selected():
    figure, (axes,) = drawing(3.0, 2.0)
    axes.set(xlabel="strength")
    root = ElementTree.fromstring(plot(figure))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "strength" in texts
    assert "#000000" not in plot(figure)
