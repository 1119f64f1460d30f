"""The page of `nearfar serve`: four tabs on a `Desk`, laid out with gradio."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from nearfar.errors import NearfarError
from nearfar.models.lookup import default_model
from nearfar.web.desk import SHOWN, STRIP, Desk
from nearfar.web.figures import ASTRONAUT_FACE, Card, cards, framed, said, shell, small

CSS = """
.cards {display:grid; grid-template-columns:repeat(auto-fill,minmax(min(6.9rem,44%),1fr));
 gap:.7rem; padding:0; margin:0}
.cards li {list-style:none; display:flex; flex-direction:column; font-size:.8rem; line-height:1.35; min-width:0}
.cards img {width:100%; height:auto; border-radius:4px; image-rendering:auto}
.cards span {opacity:.85; overflow-wrap:anywhere}
.struck img {opacity:.35} .struck b {text-decoration:line-through} .cards .why {opacity:1; font-style:italic}
p.warning, p.error {border-left:4px solid; padding:.4rem .8rem; margin:.4rem 0} p.error {color:#b3261e}
.dark p.error {color:#f2b8b5} p.warning {border-color:#b58900}
iframe.report {width:100%; height:75vh; border:0; background:#fff}
.gradio-container {max-width:1280px !important}
:focus-visible {outline:3px solid #1a73e8 !important; outline-offset:2px}
"""
WORDS = (
    "### nearfar\nNew images from a frozen model, on this machine: nothing leaves it. "
    "*{model}*, {size} pixels, license: {license}."
)


def theme() -> Any:
    """Fonts of the machine: none is fetched."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(desk: Desk, scratch: Path) -> Any:
    """The page. scratch: where files to download are made."""
    with gr.Blocks(title="nearfar", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        known = desk.model.provenance
        gr.Markdown(WORDS.format(model=known.source, size=desk.model.image.size, license=known.license))
        with gr.Tab("Try"):
            try_tab(desk)
        with gr.Tab("Audit"):
            audit_tab(desk)
        with gr.Tab("Domain"):
            domain_tab(desk, scratch)
        with gr.Tab("Run"):
            run_tab(desk)
    return page


def alone(listen: Callable[..., Any], function: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
    """An event whose work waits for that of all others, and is no programming interface."""
    return listen(
        function, inputs, outputs, concurrency_id="model", concurrency_limit=1, api_visibility="private",
        show_progress_on=outputs[-1:],
    )  # fmt: skip


def stepping(progress: Any, text: str, steps: int) -> Callable[..., None]:
    """Shows solver steps as they are made."""
    return lambda step, _: progress((step, max(step, steps)), desc=text)


def examples() -> dict[str, Image.Image]:
    """Photographs that come with scikit-image, where it is installed."""
    try:
        from skimage import data
    except ImportError:
        return {}
    astronaut = Image.fromarray(data.astronaut())
    whole, cat = astronaut, Image.fromarray(data.chelsea())
    return {"portrait": astronaut.crop(ASTRONAUT_FACE), "whole picture": whole, "cat": cat}


def try_tab(desk: Desk) -> None:
    bundled, picture, faces = examples(), gr.State(), gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            file = gr.File(label="A picture: drop it here", file_types=["image"], height=160)
            choice = gr.Radio(list(bundled), label="or one of these", visible=bool(bundled))
            status = gr.HTML(said("The first strip comes in seconds."))
        with gr.Column(scale=3, min_width=260):
            strip = gr.HTML(label="Five strengths", elem_id="strip")
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            strength = gr.Slider(0, 1, 0.35, step=0.01, label="Strength: 0 gives the picture back, 1 ignores it")
            count = gr.Slider(1, 4, 2, step=1, label="Variants")
            make = gr.Button("Make them", variant="primary", elem_id="make")
        with gr.Column(scale=3, min_width=260):
            compare = gr.ImageSlider(label="Before and after", type="pil", interactive=False, max_height=SHOWN,
                                     buttons=["download", "fullscreen"])  # fmt: skip
            several = gr.HTML(elem_id="variants")
    gr.HTML(said(about_steps(desk)))
    line = gr.Textbox(label="The same for a folder, in the shell", buttons=["copy"], value=near_line(0.35, desk))
    fresh = Trying(desk, bundled)
    for listen, function, source in ((file.upload, fresh.uploaded, file), (choice.input, fresh.chosen, choice)):
        shown = alone(listen, function, [source], [picture, status, strip])
        alone(shown.then, fresh.foreign, [picture], [status])
    for listen in (make.click, strength.release):
        alone(listen, fresh.variants, [picture, strength, count], [status, compare, several])
    strength.change(lambda value: near_line(value, desk), strength, line, queue=False, api_visibility="private")
    if desk.detector:
        faces_part(desk, file, faces, strength)


def about_steps(desk: Desk) -> str:
    steps = f"Made in {desk.steps} solver steps"
    fewer = ", fewer than the 20 of a folder run, so that a strip takes seconds" if desk.steps < 20 else ""
    return (
        f"{steps}{fewer}. How near an image still is: pixels in dB (more is nearer), the model's features (0 is "
        "equal), a recognizer where the server was given one (1 is equal); beside it what a stranger's picture gives. "
        "A changed face is not an anonymous person: what a strength protects has to be measured, see Audit."
    )


def near_line(strength: float, desk: Desk) -> str:
    return shell("nearfar", "anonymize", "photos", "near", "--strength", f"{strength:g}", *model_words(desk))


def far_lines(name: str | None, count: float, desk: Desk) -> str:
    """A fit of a folder, and so many new images of it."""
    place = desk.folders[name].name if name in desk.folders else "images"
    fit = shell("nearfar", "domain", "fit", place, f"{place}.domain", *model_words(desk))
    more = ("--count", f"{count:g}", *model_words(desk))
    return f"{fit}\n{shell('nearfar', 'domain', 'sample', f'{place}.domain', 'new', *more)}"


def model_words(desk: Desk) -> list[str]:
    source = desk.model.provenance.source
    return [] if source == default_model() else ["--model", source]


class Trying:
    """What happens on the first tab."""

    def __init__(self, desk: Desk, bundled: dict[str, Image.Image]) -> None:
        self.desk, self.bundled = desk, bundled

    def uploaded(self, path: str, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        try:
            image = self.desk.picture(path)
        except NearfarError as refusal:
            return None, said(str(refusal), "error"), ""
        return self.strip(image, progress)

    def chosen(self, name: str, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return self.strip(small(self.bundled[name], SHOWN), progress)

    def strip(self, image: Image.Image, progress: Any) -> Any:
        made = self.desk.near(image, STRIP, stepping(progress, "five strengths", self.desk.steps))
        return (
            image,
            "",
            cards([Card(image, "original"), *made, self.desk.stranger(image)], "The picture at five strengths"),
        )

    def foreign(self, image: Image.Image | None) -> Any:
        return gr.skip() if image is None else said(self.desk.foreign(image), "warning")

    def variants(self, image: Image.Image | None, strength: float, count: float,
                 progress: Any = gr.Progress()) -> Any:  # fmt: skip  # noqa: B008
        if image is None:
            return said("Give a picture first.", "error"), None, ""
        try:
            made = self.desk.near(image, [strength] * int(count), stepping(progress, "variants", self.desk.steps))
        except NearfarError as refusal:
            return said(str(refusal), "error"), None, ""
        return "", (image, made[0].image), cards(made, f"Variants at strength {strength:g}")


def faces_part(desk: Desk, file: Any, found: Any, strength: Any) -> None:
    """Faces in a photograph, replaced one by one; the rest of it stays."""
    with gr.Accordion("Only the faces in it", open=False):
        find = gr.Button("Find faces")
        sheet, which = gr.HTML(), gr.CheckboxGroup([], label="Replace these; the others are spared")
        replace, status = gr.Button("Replace them"), gr.HTML()
        both = gr.ImageSlider(label="Before and after", type="pil", interactive=False, max_height=SHOWN)

    def look(path: str | None) -> Any:
        try:
            regions = desk.regions(path) if path else []
        except NearfarError as refusal:
            return [], gr.skip(), gr.skip(), said(str(refusal), "error")
        names = [f"face {number}" for number in range(1, len(regions) + 1)]
        shown = [Card(image, name) for image, name in zip(desk.crops(path, regions), names, strict=True)]
        text = said("" if regions else "No face was found: upload a photograph with faces.")
        return regions, cards(shown, "Faces found"), gr.CheckboxGroup(names, value=names), text

    def change(path: str | None, regions: Any, names: list[str], amount: float) -> Any:
        wanted = [region for number, region in enumerate(regions or [], 1) if f"face {number}" in names]
        if not path or not wanted:
            return said("Find faces, and choose at least one.", "error"), None
        return "", desk.replaced(path, wanted, amount)

    alone(find.click, look, [file], [found, sheet, which, status])
    alone(replace.click, change, [file, found, which, strength], [status, both])


def audit_tab(desk: Desk) -> None:
    names = list(desk.folders)
    with gr.Row():
        before = gr.Dropdown(names, label="Originals", value=names[0] if names else None)
        after = gr.Dropdown(names, label="What was made of them", value=names[1] if names[1:] else None)
        go = gr.Button("Audit", variant="primary", elem_id="audit")
    few = "" if names[1:] else "Start the server with the folders: nearfar serve --folder photos --folder near"
    status, page = gr.HTML(said(few)), gr.HTML(elem_id="report")
    line = gr.Textbox(label="The same in the shell", buttons=["copy"], value="nearfar audit photos near")

    def audit(one: str, other: str, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        try:
            made = desk.audit(one, other, lambda stage, done, total: progress((done, total), desc=stage))
        except NearfarError as refusal:
            return said(str(refusal), "error"), gr.skip(), ""
        words = shell("nearfar", "audit", desk.folders[one].name, desk.folders[other].name, *model_words(desk))
        return "", words, framed(made, "The audit's report")

    alone(go.click, audit, [before, after], [status, line, page])


def domain_tab(desk: Desk, scratch: Path) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            files = gr.File(label="Images of one domain, ten or more", file_count="multiple", file_types=["image"],
                            height=160)  # fmt: skip
            folder = gr.Dropdown(list(desk.folders), label="or a folder", value=None, visible=bool(desk.folders))
            count = gr.Slider(4, 48, 12, step=1, label="New images")
            go = gr.Button("Fit and draw", variant="primary", elem_id="fit")
            status = gr.HTML(said("A fit takes minutes. The domain file is as confidential as the images."))
            pack = gr.DownloadButton("The new images (zip)", visible=False)
            file = gr.DownloadButton("The domain file", visible=False)
        with gr.Column(scale=3, min_width=260):
            sheet = gr.HTML(elem_id="sheet")
    line = gr.Textbox(label="The same in the shell", buttons=["copy"], value=far_lines(None, 12, desk), lines=2)
    for chosen in (folder, count):
        told = partial(far_lines, desk=desk)
        chosen.change(told, [folder, count], line, queue=False, api_visibility="private")

    def fit(paths: list[str] | None, name: str | None, wanted: float, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        try:
            images = desk.inputs(paths or [], name or "")
            place = Path(tempfile.mkdtemp(dir=scratch))
            far = desk.far(images, int(wanted), place, stepping(progress, "fit", desk.steps))
        except NearfarError as refusal:
            return said(str(refusal), "error"), gr.skip(), gr.skip(), ""
        kept = sum(not one.struck for one in far.cards)
        text = f"{kept} of {len(far.cards)} kept; struck through ones are not in the file. {'. '.join(far.rates)}."
        ready = [gr.DownloadButton(value=str(path), visible=True) for path in (far.pack, far.file)]
        return said(text), *ready, cards(far.cards, "New images")

    alone(go.click, fit, [files, folder, count], [status, pack, file, sheet])


def run_tab(desk: Desk) -> None:
    gr.Markdown("Put together a shell line: it writes a folder of new images, resumes, and keeps a record.")
    with gr.Row():
        source = gr.Textbox("photos", label="Folder of images")
        out = gr.Textbox("near", label="Folder for the results")
    with gr.Row():
        strength = gr.Slider(0.01, 1, 0.35, step=0.01, label="Strength")
        steps = gr.Slider(1, 100, 20, step=1, label="Solver steps")
    line = gr.Textbox(label="In the shell", buttons=["copy"], elem_id="line")

    def put(*given: Any) -> str:
        words = ("--strength", f"{given[2]:g}", "--steps", int(given[3]))
        return shell("nearfar", "anonymize", *given[:2], *words, *model_words(desk))

    inputs = [source, out, strength, steps]
    line.value = put("photos", "near", 0.35, 20)
    for each in inputs:
        each.change(put, inputs, line, queue=False, api_visibility="private")
