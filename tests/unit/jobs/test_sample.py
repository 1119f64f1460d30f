"""Samples as files: the same bytes however a run was cut, each judged and recorded, other settings refused."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.domain.domain import Gaussian
from nearfar.domain.guards import Guards, Judgment
from nearfar.domain.recipe import Recipe
from nearfar.domain.synthesis import Synthesizer, synthesize, vary
from nearfar.errors import UsageError
from nearfar.io.arrays import read_array
from nearfar.io.manifest import manifest_path, read_manifest
from nearfar.io.values import ValueTransform
from nearfar.jobs.run import run
from nearfar.jobs.sample import plan_samples, sample_job
from oracle_domains import fitted, oracle, own, unseen

VALUES = ValueTransform("linear", (-2.0,) * 3, (500.0,) * 3, (1.0,) * 3)


def work(recipe=None, domain=None, **options):
    """Batches of three, two at the same time, nothing dropped."""
    how = {"suffix": ".png", "keep_all": True, "batch_size": 3, **options}
    return replace(sample_job(oracle(), domain or fitted(), recipe or Recipe(), **how), workers=2)


def arrays():
    return replace(fitted(), preprocessing={"values": asdict(VALUES)})


def write(job, out, count, resume=False, **options):
    return run(job, out, plan_samples(job, count, out, resume), **options)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def records(out):
    return read_manifest(manifest_path(out)).records


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run makes: eleven samples."""
    out = tmp_path_factory.mktemp("whole") / "out"
    write(work(Recipe(eta=0.5)), out, 11)
    return out


def interrupt_after_a_batch(progress):
    if progress.done >= 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["nothing", "a file is gone", "a file is cut", "the record is cut"])
def test_a_run_that_was_cut_ends_in_the_same_bytes(whole, tmp_path, damage):
    out, making = tmp_path / "out", work(Recipe(eta=0.5))
    with pytest.raises(KeyboardInterrupt):
        write(making, out, 11, report=interrupt_after_a_batch)
    assert 3 <= len(contents(out)) < 11
    match damage:
        case "a file is gone":
            (out / "sample-0002.png").unlink()
        case "a file is cut":
            (out / "sample-0002.png").write_bytes(contents(out)["sample-0002.png"][:20])
        case "the record is cut":
            path = manifest_path(out)
            path.write_bytes(path.read_bytes()[:-40])
    progress = write(making, out, 11, resume=True)
    assert progress.kept >= (3 if damage == "nothing" else 2)
    assert progress.kept + progress.done == 11
    assert contents(out) == contents(whole)
    assert records(out) == records(whole)


def test_a_run_that_goes_on_to_more_ends_in_the_same_bytes(whole, tmp_path):
    making = work(Recipe(eta=0.5))
    write(making, tmp_path / "out", 5)
    assert len(contents(tmp_path / "out")) == 5
    assert write(making, tmp_path / "out", 11, resume=True).kept == 5
    assert contents(tmp_path / "out") == contents(whole)


def test_a_number_says_which_sample_it_is(tmp_path):
    write(work(), tmp_path / "out", 4)
    images = synthesize(oracle(), fitted(), 4, first=1, batch_size=3).images
    for number, image in enumerate(images, 1):
        with Image.open(tmp_path / f"out/sample-{number:04}.png") as file:
            assert np.abs(np.asarray(file) / 127.5 - 1 - image.permute(1, 2, 0).numpy()).max() <= 1 / 127
        record = records(tmp_path / "out")[f"sample-{number:04}.png"]
        assert record.figures["number"] == number
        assert len(record.parents) == 3


def alternating(*_, batch_size):
    """Sample 1 is kept, 2 flagged, 3 dropped, in every batch of three."""
    return [
        Judgment(number, 1.0, 2.0, 0.1, -1.0, 0.5, reasons, verdict)
        for number, (verdict, reasons) in enumerate([("keep", ()), ("flag", ("odd",)), ("drop", ("a copy", "odd"))])
    ]


def test_what_is_dropped_is_recorded_and_never_replaced(tmp_path, monkeypatch):
    made, make = [], Synthesizer.make
    monkeypatch.setattr(Guards, "judge", alternating)
    monkeypatch.setattr(Synthesizer, "make", lambda *given: made.append(given[1]) or make(*given))
    making = work(keep_all=False)
    progress = write(making, tmp_path / "out", 6)
    assert (progress.done, len(progress.dropped)) == (4, 2)
    assert sorted(contents(tmp_path / "out")) == [f"sample-000{number}.png" for number in (1, 2, 4, 5)]
    found = records(tmp_path / "out")
    assert [found[f"sample-000{number}.png"].verdict for number in range(1, 7)] == ["keep", "flag", "drop"] * 2
    dropped = found["sample-0003.png"]
    assert (dropped.status, dropped.reason, dropped.target_sha256) == ("dropped", "a copy; odd", "")
    assert dropped.figures["latent_copy"] == 1.0
    assert len(made) == 2
    assert write(making, tmp_path / "out", 6, resume=True).kept == 6
    assert len(made) == 2


def test_a_sample_that_is_not_finite_fails_and_is_made_again(tmp_path):
    making = work()

    def broken(*given):
        made = making.transform(*given)
        made.images[1] = torch.nan
        return made

    progress = write(replace(making, transform=broken), tmp_path / "out", 3)
    (failed,) = progress.failed
    assert failed.name == "sample-0002.png"
    assert "not finite" in failed.reason
    assert write(making, tmp_path / "out", 3, resume=True).kept == 2


def test_arrays_are_written_in_physical_units(tmp_path):
    domain = arrays()
    write(work(domain=domain, suffix=".npy"), tmp_path / "out", 3)
    images = synthesize(oracle(), domain, 3, first=1, batch_size=3).images
    for number, image in enumerate(images, 1):
        values = read_array(tmp_path / f"out/sample-{number:04}.npy")
        np.testing.assert_allclose(values, VALUES.to_values(image), rtol=0, atol=1e-3)
        assert np.load(tmp_path / f"out/sample-{number:04}.npy").dtype == np.float32


def test_variations_are_those_of_vary(tmp_path):
    image = unseen()[0]
    making = work(Recipe(near=image, amount=0.3))
    expected = vary(oracle(), fitted(), image, 4, amount=0.3, batch_size=4)
    items = plan_samples(making, 3, tmp_path / "out", resume=False).todo
    torch.testing.assert_close(making.transform(torch.empty(3, 0, 0, 0), items, lambda *_: None).images, expected[1:])


@pytest.mark.parametrize(
    "other",
    [
        {"recipe": Recipe(seed=1)},
        {"recipe": Recipe(family="scalar")},
        {"recipe": Recipe(geometry="projected")},
        {"recipe": Recipe(pull=0.1)},
        {"recipe": Recipe(eta=0.1)},
        {"recipe": Recipe(parents=2)},
        {"recipe": Recipe(near=unseen()[0])},
        {"keep_all": False},
        {"batch_size": 2},
        {"domain": arrays(), "suffix": ".npy"},
        {"domain": fitted(symmetry="mirror")},
        {"domain": replace(fitted(), own=Gaussian.fit(own(seed=1)))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_settings_are_refused(tmp_path, other):
    out = tmp_path / "out"
    write(work(), out, 2)
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="out was made with other settings"):
        plan_samples(work(**other), 2, out, resume=True)
    assert contents(out) == before


def test_the_guidance_of_a_text_model_is_recorded_beside_the_pull_of_the_samples():
    bound = {"guidance": 3.0}
    domain = replace(fitted(), settings=bound)
    made = sample_job(oracle(settings=bound), domain, Recipe(pull=0.1), suffix=".png", batch_size=2)
    assert (made.settings["model_settings"], made.settings["pull"]) == (bound, 0.1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"suffix": ".npy"}, r"this domain is one of pictures: format must be one of \.png, got \.npy"),
        ({"suffix": ".png", "domain": "arrays"}, r"this domain is one of arrays: format must be one of \.npy .*"),
        ({"suffix": ".npy", "domain": "arrays", "dtype": "uint8"}, "dtype must be one of float32, uint16, got 'uint8'"),
        ({"suffix": ".npy", "domain": "arrays", "dtype": "uint16"}, "uint16 holds values from 0 to 65535, this domain"),
        ({"recipe": Recipe(family="scalar", parents=2)}, "scalar draws take no options, got parents"),
        ({"recipe": Recipe(parents=99)}, "parents must be from 1 to the 16 latents there are, got 99"),
        ({"recipe": Recipe(geometry="round")}, "geometry must be one of free, projected, tested, got 'round'"),
    ],
)
def test_what_cannot_be_made_is_refused(options, sentence):
    domain = {"domain": arrays()} if options.get("domain") else {}
    with pytest.raises(UsageError, match=sentence):
        work(**options | domain)
