"""Links that appear in OUT or beside it are not followed: not between a run and its resumption, not in the middle."""

import shutil

import pytest

from cli.folders import state
from nearfar.data.copies import Wanted
from nearfar.errors import NearfarError, RunError, UsageError
from nearfar.io.manifest import manifest_path, salt_path
from nearfar.jobs.run import plan_run, run
from nearfar.jobs.units import augment_units, work_folder
from unit.jobs.test_run import make_job
from unit.jobs.test_units import png, write_tar


@pytest.fixture
def places(tmp_path, smooth):
    """24 images in a folder `a`, a place for outputs, and a folder of somebody else's."""
    for folder in (tmp_path / "in" / "a", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        for number in range(24):
            smooth(number).save(folder / f"{number:03}.png")
    return tmp_path / "in", tmp_path / "out", tmp_path / "elsewhere"


def execute(source, out, resume=False, job=None):
    job = job or make_job()
    return run(job, out, plan_run(job, source, out, resume))


def moved(path, elsewhere):
    """What lies at a path lies elsewhere now, and a link in its place."""
    shutil.move(path, elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


def test_an_output_that_became_a_link_is_written_anew(places):
    source, out, elsewhere = places
    execute(source, out)
    linked = sorted(out.rglob("*.png"))[:2]
    contents = [path.read_bytes() for path in linked]
    moved(linked[0], elsewhere)
    linked[1].unlink()
    linked[1].symlink_to(source / "a" / "000.png")
    before = state(elsewhere), state(source)
    progress = execute(source, out, resume=True)
    assert (progress.kept, progress.done, progress.failed) == (22, 2, [])
    assert [path.read_bytes() for path in linked] == contents
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert (state(elsewhere), state(source)) == before


@pytest.mark.parametrize("what", ["a folder", "a folder, to originals", "a folder, to nothing", "the record"])
def test_folders_and_records_that_became_links_are_refused_and_nothing_changes_behind_them(places, what):
    source, out, elsewhere = places
    execute(source, out)
    if what == "a folder":
        moved(out / "a", elsewhere)
    elif what == "the record":
        moved(manifest_path(out), elsewhere)
    else:
        shutil.rmtree(out / "a")
        (out / "a").symlink_to(source / "a" if "originals" in what else elsewhere / "nothing")
    (source / "a" / "003.png").write_bytes((source / "a" / "004.png").read_bytes())  # would be written anew
    before = state(elsewhere), state(source)
    with pytest.raises(NearfarError, match=r"(is|became) a link.*: remove it"):
        execute(source, out, resume=True)
    assert (state(elsewhere), state(source)) == before


@pytest.mark.parametrize("place", [manifest_path, salt_path])
def test_a_link_where_a_record_is_about_to_be_made_is_refused(places, place):
    source, out, elsewhere = places
    place(out).symlink_to(elsewhere / "made")
    with pytest.raises(UsageError, match="is a link, through which nothing is written: remove it"):
        execute(source, out)
    assert not (elsewhere / "made").exists()


@pytest.mark.parametrize("what", ["a folder", "OUT", "the record", "the record, to itself"])
def test_links_that_are_swapped_in_while_the_run_goes_on_end_it(places, what):
    source, out, elsewhere = places
    calls, seen = [], []

    def transform(images):
        calls.append(1)
        if len(calls) == 5:
            path = {"a folder": out / "a", "OUT": out}.get(what, manifest_path(out))
            moved(path, elsewhere)
            seen.append(len([*elsewhere.rglob("*.png")]))
            if "itself" in what:
                path.unlink()
                path.symlink_to(path.name)
        return -images

    with pytest.raises(RunError, match=r"became a link|was removed or replaced while it ran"):
        execute(source, out, job=make_job(transform, workers=1))
    assert len([*elsewhere.rglob("*.png")]) - seen[0] <= 8  # what was being written just then


@pytest.mark.parametrize("what", ["a shard", "its folder", "the work's folder", "inside the work's folder"])
def test_shards_and_their_work_are_not_written_through_links(places, model, smooth, what):
    source, out, elsewhere = places
    shards = source.with_name("shards")
    (shards / "b").mkdir(parents=True)
    for name in ("one.tar", "b/two.tar"):
        write_tar(shards / name, {"0.png": png(smooth(1)), "0.cls": b"cat"})
    make = {"steps": 1, "batch_size": 4}
    augment_units(model, shards, out, Wanted(), **make)
    written = {name: (out / name).read_bytes() for name in ("one.tar", "b/two.tar")}
    moved(*{"its folder": (out / "b", elsewhere)}.get(what, (out / "b" / "two.tar", elsewhere)))
    if "work" in what:
        (out / "b" / "two.tar").unlink()
        link = work_folder(out) / "in" if "inside" in what else work_folder(out)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(elsewhere)
    before = state(elsewhere)
    if what == "a shard":
        augment_units(model, shards, out, Wanted(), resume=True, **make)
        assert {name: (out / name).read_bytes() for name in written} == written
        assert not (out / "b" / "two.tar").is_symlink()
    else:
        with pytest.raises(UsageError, match="is a link, through which nothing is written"):
            augment_units(model, shards, out, Wanted(), resume=True, **make)
    assert state(elsewhere) == before


@pytest.mark.parametrize("place", ["labels", "images"])
def test_annotations_are_not_written_through_links(places, model, smooth, place):
    from nearfar.jobs.augment import augment_folder

    source, out, elsewhere = places
    data = source.with_name("data")
    for name in ("images/a.png", "labels/a.txt"):
        (data / name).parent.mkdir(parents=True)
    smooth(1).save(data / "images" / "a.png")
    (data / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (data / "data.yaml").write_text("names: [cat]\n")
    make = {"steps": 1, "batch_size": 4}
    augment_folder(model, data, out, Wanted(), **make)
    moved(out / place, elsewhere)
    before = state(elsewhere)
    with pytest.raises(UsageError, match=f"{place} is a link, through which nothing is written"):
        augment_folder(model, data, out, Wanted(), resume=True, **make)
    assert state(elsewhere) == before
