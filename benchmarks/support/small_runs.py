"""Command lines of every job on small inputs (`small_inputs`), with tiny models (`small_models`).

A run has a name and a line, in which OUT stands for a folder of its own. Those whose names end in -text tell the
outcome to people, all others as JSON. Options have the names of the flat package: `same_bytes` translates them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.support.small_models import CHECKPOINTS

BATCHES, MAIN = (1, 3, 8), ("pixel", "patched", "latent")
NEEDED = re.compile(r"\bout/([^/ ]+)/")
"""Another run whose output a line names."""
SPECIAL = {
    **dict.fromkeys(("cosine", "score", "preconditioned", "quantized"), ""),
    "classes": "--label 3",
    "prompted": "--prompt cat --negative-prompt dog --guidance 3",
    "flow": "--prompt cat --guidance 2",
}
"""Other kinds of models, and what they want."""
CHOICES = {
    "balance": "table --label-column kind --select balance --copies 3",
    "rarest": "table --label-column kind --select rarest --share 0.3",
    "hardest": "classes --select hardest --share 0.3 --features pixels",
    "drop": "classes --check-labels drop --strength 0.9 --keep-originals",
    "flag": "classes --check-labels flag --strength 0.9 --features pixels",
}
"""Ways to choose what gets copies, and to check them."""
FAMILIES = ("regions", "parents", "sphere", "scalar", "diagonal", "spectral", "structured", "shrinkage")
SAMPLES = {
    "projected": "--geometry projected --keep-all",
    "tested": "--geometry tested --keep-all",
    "two-parents": "--parents 2 --keep-all",
    "pull": "--pull 0.6 --keep-all",
    "eta": "--eta 0.5 --keep-all --show-fitted",
    "measured": "--eta auto --keep-all",
    "near": "--near in/formats/wide.png --amount 0.3 --keep-all",
    "guarded": "--report OUT/page.html",
    "plan": "--dry-run",
}
"""Ways to draw samples of a domain."""

Lines = Iterator[tuple[str, str]]
"""Name of a run, and its command line."""


def near_runs() -> Lines:
    """The jobs on folders, with three models and batches of three sizes."""
    for model in MAIN:
        for size in BATCHES:
            tail, name = f"--model models/{model} --batch-size {size} --steps 3", f"{model}-{size}"
            yield f"anonymize-{name}", f"anonymize in/flat OUT/made --key-file key --strength 0.4 {tail}"
            copies = "--copies 2 --strength 0.2-0.4 --strength dog=0.5 --keep-originals"
            yield f"augment-{name}", f"augment in/classes OUT/made --only */1* --seed 5 {copies} {tail}"
            far = "--strength 0.5" if model == "latent" else ""
            yield f"enhance-{name}", f"enhance in/small OUT/made --scale 4 --seed 3 {far} {tail}"
            yield f"reconstruct-{name}", f"reconstruct in/flat OUT/made --own-samples 4 {tail}"
            yield f"invert-{name}", f"invert in/flat OUT/made {tail}"
            target = "--target similarity=0.7 --features pixels"
            yield f"calibrate-{name}", f"calibrate in/many OUT/c.json {target} --sample 22 {tail}"


def anonymize_runs() -> Lines:
    """Levels, solvers, formats, options."""
    start, tail = "anonymize in/flat OUT/made --key-file key", "--model models/pixel --batch-size 8 --steps 3"
    for solver in ("dpm++sde", "ancestral", "ddim", "dpm++", "heun"):
        yield f"anonymize-{solver}", f"{start} --solver {solver} {tail}"
    for name, more in {"sigma": "--sigma 1.5", "zero": "--strength 0", "one": "--strength 1"}.items():
        yield f"anonymize-{name}", f"{start} {more} {tail}"
    formats = "anonymize in/formats OUT/made --key-file key"
    yield "anonymize-formats", f"{formats} {tail}"
    yield "anonymize-metadata", f"{formats} --keep-metadata --fit cover {tail}"
    yield "anonymize-gray", f"{formats} --model models/gray --batch-size 3 --steps 3"
    yield "anonymize-large", f"{formats} --model models/latent --size 40 --batch-size 3 --steps 3"
    yield "anonymize-automatic", f"{start} --model models/pixel --steps 3"
    yield "anonymize-bundled", "anonymize in/small OUT/made --key-file key --steps 2"
    yield "anonymize-plan", f"{start} --dry-run {tail}"
    yield "anonymize-refused", f"{start} --strength 2 {tail}"


def model_runs() -> Lines:
    """Every other kind of model."""
    for name, more in SPECIAL.items():
        for command in ("anonymize", "invert"):
            tail = f"--model models/{name} {more} --steps 3 --batch-size 3"
            yield f"{command}-{name}", f"{command} in/small OUT/made {'--key-file key' * (command < 'b')} {tail}"
    yield "anonymize-sampled", "anonymize in/small OUT/made --key-file key --model models/latent --sampled --steps 3"
    for name in CHECKPOINTS:
        if Path("models", name).exists():
            yield f"convert-{name}", f"models convert models/{name} OUT/made --schedule cosine"
            yield f"anonymize-{name}", f"anonymize in/small OUT/made --key-file key --model models/{name} --steps 3"
    yield "models", "models --json"


def region_runs() -> Lines:
    tail = "--model models/pixel --steps 3 --batch-size 3"
    boxes = "anonymize in/boxes OUT/made --key-file key --regions boxes"
    yield "regions-boxes", f"{boxes} {tail}"
    yield "regions-class", f"{boxes} --box-classes plate --keep-unmatched --margin 0.1 {tail}"
    yield "regions-file", f"{boxes} --boxes in/boxes/images/boxes.json --report OUT/page.html {tail}"
    yield "regions-latent", f"{boxes} --model models/latent --steps 3"


def augment_runs() -> Lines:
    """Ways to choose, to check and to annotate; folders, shards and data sets."""
    tail = "--model models/pixel --steps 3 --batch-size 8"
    for name, more in CHOICES.items():
        yield f"augment-{name}", f"augment in/{more.split()[0]} OUT/made {' '.join(more.split()[1:])} {tail}"
    yield "augment-formats", f"augment in/formats OUT/made --keep-originals --keep-metadata {tail}"
    for name, chosen in {"boxes": "plate", "yolo": "round"}.items():
        boxes = f"--copies 2 --keep-originals --strength {chosen}=0.2"
        yield f"augment-{name}", f"augment in/{name} OUT/made {boxes} {tail}"
    for name, source in {"shard": "one.tar", "shards": "shards"}.items():
        yield f"augment-{name}", f"augment in/{source} OUT/made --copies 2 --keep-originals {tail}"
    for kind in ("parquet", "saved", "splits"):
        yield f"augment-{kind}", f"augment in/sets/{kind} OUT/made --copies 2 --keep-originals {tail}"
    yield "augment-judged", f"augment in/sets/saved OUT/made --select balance --strength 0.1-0.6 {tail}"


def other_runs() -> Lines:
    """Enhancement, reconstruction, inversion: what the first runs leave out."""
    tail = "--model models/pixel --steps 3 --batch-size 8"
    yield "enhance-tiles", f"enhance in/wide OUT/made --scale 2 --strength 0.3 --solver ddim {tail}"
    yield "enhance-paper", f"enhance in/small OUT/made --scale 4 --cascade 2 --no-consistency {tail}"
    yield "enhance-formats", f"enhance in/formats OUT/made --scale 2 --keep-metadata {tail}"
    for solver in ("heun", "ddim", "bdia"):
        yield f"reconstruct-{solver}", f"reconstruct in/flat OUT/made --own-samples 0 --solver {solver} {tail}"
    yield "reconstruct-formats", f"reconstruct in/formats OUT/made --own-samples 4 --report OUT/page.html {tail}"
    yield "invert-heun", f"invert in/formats OUT/made --solver heun --sigma 2 {tail}"


def calibration_runs() -> Lines:
    """Targets, and outputs at the strengths that were found."""
    tail = "--model models/pixel --steps 3 --batch-size 8"
    rank = "--target rank1=0.5 --people --features pixels"
    yield "calibrate-people", f"calibrate in/people OUT/c.json {rank} {tail}"
    both = "--target label=0.6 --target distance=0.1 --sample 22"
    yield "calibrate-labels", f"calibrate in/classes OUT/c.json {both} {tail}"
    yield "calibrate-never", f"calibrate in/many OUT/c.json --target similarity=-0.5 --report OUT/page.html {tail}"
    yield "calibrate-low", f"calibrate in/many OUT/c.json --target similarity=0.06 --features pixels {tail}"
    found = "anonymize in/many OUT/made --key-file key --calibration"
    yield "anonymize-calibrated", f"{found} out/calibrate-pixel-8/c.json {tail}"
    yield "anonymize-per-image", f"{found} out/calibrate-low/c.json --per-image {tail}"


def audit_runs() -> Lines:
    """Audits need outputs: local samples of classes and of people, one of them missing."""
    for group in ("classes", "people"):
        made = f"anonymize in/{group} OUT/made --key-file key --strength 0.5"
        yield f"audited-{group}", f"{made} --model models/pixel --steps 3 --batch-size 8"
        yield f"audited-{group}-latent", f"{made} --model models/latent --steps 3 --batch-size 8"
    yield "audited-few", "anonymize in/tests OUT/made --key-file key --model models/pixel --steps 3"
    every = "--reference in/strangers --others in/strangers --members in/many --test in/tests --key-file key"
    start = "audit in/classes out/audited-classes/made --report OUT/page.html"
    yield "audit-all", f"{start} {every} --model models/pixel"
    yield "audit-plain", f"{start} --features pixels --limit 15 --seed 3 --model models/pixel"
    few = "audit in/tests out/audited-few/made --report OUT/page.html"
    yield "audit-cnn", f"{few} --classifier cnn --seeds 1 --model models/pixel"
    for name, model in {"people": "pixel", "people-latent": "latent"}.items():
        made = f"audit in/people out/audited-{name}/made --people --key-file key"
        yield f"audit-{name}", f"{made} --report OUT/page.html --model models/{model}"


def domain_runs() -> Lines:
    """Fits first, then surveys and samples."""
    for model in MAIN:
        own = "--batch-size 8" if model == "pixel" else "--batch-size 32"
        fit = f"domain fit in/flat OUT/a.domain --no-pilot {own} --model models/{model} --steps 3"
        yield f"fit-{model}", f"{fit} --report OUT/page.html --thumbnails"
        for size in BATCHES:
            sample = f"domain sample out/fit-{model}/a.domain OUT/made --count 7 --keep-all --seed 2"
            yield f"sample-{model}-{size}", f"{sample} --model models/{model} --batch-size {size}"
            survey = f"domain survey in/flat --report OUT/page.html --model models/{model} --steps 1"
            if model == "pixel" or size == 3:
                yield f"survey-{model}-{size}", f"{survey} --batch-size {size}"
        yield f"inspect-{model}", f"domain inspect out/fit-{model}/a.domain --model models/{model}"


def more_domain_runs() -> Lines:
    """The pilot, a surveyed level, arrays of three curves."""
    tail = "--model models/pixel --steps 2 --batch-size 32"
    pilot = "domain fit in/formats OUT/a.domain --symmetry turn --strength 0.6 --seed 4"
    yield "fit-pilot", f"{pilot} --report OUT/page.html {tail}"
    yield "fit-survey", f"domain fit in/flat OUT/a.domain --survey --no-pilot {tail}"
    for name, more in {
        "linear": "in/arrays OUT/a.domain --values linear --clip 0.01",
        "asinh": "in/arrays OUT/a.domain --values asinh --softening 0.1 --softening 0.2 --softening 0.3",
        "log": "in/gray_arrays OUT/a.domain --values log --fit cover",
    }.items():
        yield f"fit-{name}", f"domain fit {more} --no-pilot {tail}"
    flux = "--count 3 --keep-all --model models/pixel --batch-size 4"
    for name, kind in {"linear": "npy", "asinh": "fits", "log": "tif"}.items():
        yield f"sample-{kind}", f"domain sample out/fit-{name}/a.domain OUT/made --format {kind} {flux}"
    yield "sample-uint16", f"domain sample out/fit-log/a.domain OUT/made --dtype uint16 {flux}"
    yield "inspect-asinh", "domain inspect out/fit-asinh/a.domain"


def sample_runs() -> Lines:
    """Families, geometries, guidance, fresh noise, variations."""
    start, tail = "domain sample out/fit-pixel/a.domain OUT/made --count 5", "--model models/pixel --batch-size 3"
    for family in FAMILIES:
        yield f"sample-{family}", f"{start} --family {family} --keep-all {tail}"
    for name, more in SAMPLES.items():
        yield f"sample-{name}", f"{start} {more} {tail}"


def text_runs() -> Lines:
    """What is told to people instead of JSON: by runs whose names end so."""
    tail = "--model models/pixel --steps 2 --batch-size 8"
    yield "anonymize-text", f"anonymize in/formats OUT/made --key-file key {tail}"
    yield "plan-text", f"anonymize in/formats OUT/made --key-file key --dry-run {tail}"
    yield "reconstruct-text", f"reconstruct in/small OUT/made --own-samples 4 {tail}"
    yield "audit-text", "audit in/tests out/audited-few/made --report OUT/page.html --model models/pixel"
    yield "calibrate-text", f"calibrate in/many OUT/c.json --target similarity=0.7 --features pixels {tail}"
    yield "inspect-text", "domain inspect out/fit-pixel/a.domain"
    yield "sample-text", "domain sample out/fit-pixel/a.domain OUT/made --count 4 --model models/pixel --batch-size 4"
    yield "shards-text", f"augment in/shards OUT/made --dry-run {tail}"
    yield "models-text", "models"


def face_runs() -> Lines:
    """Only where a detector and a recognizer of faces were given."""
    files = "--detector faces/detector.onnx --recogniser faces/recognizer.onnx"
    start = "anonymize in/faces OUT/made --key-file key --model models/pixel --steps 3"
    yield "faces-regions", f"{start} --regions faces --keep-unmatched {files}"
    yield "faces-whole", f"{start} --strength 0.2 --size 64"
    audit = "audit in/faces out/faces-regions/made --report OUT/page.html --model models/pixel"
    yield "faces-audit", f"{audit} {files}"
    alike = "--target similarity=0.6 --size 64 --steps 1 --model models/pixel --batch-size 20"
    yield "faces-calibrate", f"calibrate in/portraits OUT/c.json {alike} {files}"
    found = "anonymize in/portraits OUT/made --key-file key --calibration out/faces-calibrate/c.json --per-image"
    yield "faces-per-image", f"{found} --size 64 --steps 1 --model models/pixel"


def runs() -> Lines:
    """All of them, in an order in which each finds what it needs."""
    groups = (near_runs, anonymize_runs, model_runs, region_runs, augment_runs, other_runs)
    for group in (*groups, calibration_runs, audit_runs, domain_runs, more_domain_runs, sample_runs, text_runs):
        yield from group()
    if Path("faces").exists():
        yield from face_runs()


def kill_runs() -> Lines:
    """Runs that are long enough to be killed in the middle."""
    tail = "--model models/pixel --batch-size 4 --steps 6"
    yield "anonymize", f"anonymize in/long OUT/made --key-file key {tail}"
    yield "augment", f"augment in/classes OUT/made --copies 3 --keep-originals {tail}"
    yield "shard", f"augment in/one.tar OUT/made --copies 3 {tail}"
    yield "enhance", f"enhance in/flat OUT/made --scale 2 {tail}"
    yield "calibrate", f"calibrate in/many OUT/made/c.json --target similarity=0.7 --features pixels {tail}"
    sample = "domain sample out/fit-pixel/a.domain OUT/made --count 80 --keep-all"
    yield "sample", f"{sample} --model models/pixel --batch-size 4"


def chosen(only: str) -> tuple[dict[str, str], dict[str, str]]:
    """The runs of these names with those whose outputs they need, and those to be killed (`killed-sample`)."""
    kills = {name: line for name, line in kill_runs() if fnmatchcase(f"killed-{name}", only)}
    needed, wanted = set(NEEDED.findall(" ".join(kills.values()))), dict[str, str]()
    for name, line in reversed([*runs()]):
        if name in needed or fnmatchcase(name, only):
            wanted[name] = line
            needed.update(NEEDED.findall(line))
    return dict(reversed(wanted.items())), kills
