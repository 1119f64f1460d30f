"""Outputs are matched with their originals by name, and compared with them as scikit-image does it."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nearfar.audit.pairs import compare_strangers, pair_folders, read_pairs
from nearfar.errors import UsageError


@pytest.fixture
def folder(tmp_path, smooth):
    """Writes pictures of these names into a folder of that name; the number of a picture is its seed."""

    def write(name, files, size=(16, 16)):
        for path, number in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            smooth(number, size).save(file)
        return tmp_path / name

    return write


def matches(pairing):
    return {item.name: [output.name for output in outputs] for item, outputs in pairing.outputs}


def test_names_copies_and_other_suffixes_are_matched(folder):
    before = folder("before", dict.fromkeys(["a/x.png", "a/x~1.png", "b/y.jpg", "b/z.png", "b/z.jpg", "lost.png"], 0))
    names = ["a/x.png", "a/x~1.png", "a/x~2.png", "b/y~1.png", "b/z~3.jpg", "b/z.webp", "a/y.jpg", "x.png"]
    found = pair_folders(before, folder("after", dict.fromkeys(names, 1)))
    assert matches(found) == {
        "a/x.png": ["a/x.png", "a/x~2.png"],
        "a/x~1.png": ["a/x~1.png"],
        "b/y.jpg": ["b/y~1.png"],
        "b/z.jpg": ["b/z~3.jpg"],
    }
    assert found.lost == ["b/z.png", "lost.png"]
    assert found.strange == ["a/y.jpg", "b/z.webp", "x.png"]


def test_originals_that_lie_beside_their_copies_are_no_outputs(folder):
    before = folder("before", {"a.png": 0, "b.png": 1, "c.png": 2})
    kept = {"a.png": 0, "a~1.png": 10, "b.png": 11, "b~1.png": 12, "c.png": 2}
    found = pair_folders(before, folder("after", kept))
    assert matches(found) == {"a.png": ["a~1.png"], "b.png": ["b.png", "b~1.png"], "c.png": ["c.png"]}
    assert found.copied == found.some(2, seed=0).copied == ["a.png"]


def test_folders_that_have_nothing_in_common_are_refused(folder):
    with pytest.raises(UsageError, match=r"no image of .*after has the name of one of .*\(1 images there, 2 here\)"):
        pair_folders(folder("before", {"a.png": 0}), folder("after", {"b.png": 0, "c.png": 0}))


def test_some_originals_are_drawn_with_all_of_their_outputs(folder):
    before = folder("before", {f"{number}.png": number for number in range(6)})
    after = folder("after", {f"{number}~{copy}.png": number for number in range(6) for copy in (1, 2)})
    whole = pair_folders(before, after)
    some = whole.some(3, seed=1)
    assert matches(some).items() <= matches(whole).items()
    assert len(some.outputs) == 3
    assert whole.some(6, seed=1) is whole
    assert {tuple(matches(whole.some(3, seed)).keys()) for seed in range(8)} != {tuple(matches(some))}


def test_figures_are_those_of_scikit_image_at_the_original_size(folder):
    before, after = folder("before", {"a.png": 0}, (40, 30)), folder("after", {"a.png": 1}, (40, 30))
    found = read_pairs(pair_folders(before, after), 16)
    x, y = (np.array(Image.open(each / "a.png")) / 127.5 - 1 for each in (before, after))
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert found.psnr.item() == pytest.approx(peak_signal_noise_ratio(x, y, data_range=2), abs=1e-4)
    expected = structural_similarity(x, y, data_range=2, channel_axis=2, full=True, **gaussian)[1][5:-5, 5:-5].mean()
    assert found.ssim.item() == pytest.approx(expected, abs=1e-4)
    assert found.originals.shape == found.outputs.shape == (1, 3, 16, 16)


def test_bad_files_are_listed_and_the_others_are_read(folder):
    before = folder("before", dict.fromkeys(["a.png", "b.png", "c.png"], 0))
    after = folder("after", dict.fromkeys(["a.png", "b~1.png", "b~2.png", "c.png"], 0))
    (before / "a.png").write_bytes(b"no picture")
    (after / "b~1.png").write_bytes(b"")
    (after / "d.gif").write_bytes(b"GIF89a")
    seen = []
    found = read_pairs(pair_folders(before, after), 16, lambda *stage: seen.append(stage))
    assert [item.name for item in found.items] == ["b.png", "c.png"]
    assert [item.name for item in found.output_items] == ["b~2.png", "c.png"]
    assert found.of.tolist() == [0, 1]
    assert [entry.name for entry in found.rejected] == ["AFTER/d.gif", "BEFORE/a.png", "AFTER/b~1.png"]
    assert seen == [("pairs", 1, 3), ("pairs", 2, 3), ("pairs", 3, 3)]
    assert torch.equal(found.psnr, torch.full((2,), 150.0).double())


def test_nothing_that_can_be_read_is_refused_in_words(folder):
    before, after = folder("before", {"a.png": 0}), folder("after", {"a.png": 0})
    (after / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="no pair can be read; the first of 1 files"):
        read_pairs(pair_folders(before, after), 16)


def test_outputs_of_another_size_and_of_gray_are_compared_all_the_same(folder):
    before, after = folder("before", {"a.png": 0, "b.png": 1}), folder("after", {"a.png": 0}, (32, 32))
    Image.open(before / "b.png").convert("L").save(after / "b.png")
    found = read_pairs(pair_folders(before, after), 16)
    assert found.resized == 1
    assert 20 < found.psnr[0] < 100
    assert 10 < found.psnr[1] < 40


def test_strangers_are_compared_at_their_own_size(folder):
    names = [f"{number}.png" for number in range(4)]
    before = folder("before", {name: number for number, name in enumerate(names)}, (40, 30))
    after = folder("after", {name: 10 + number for number, name in enumerate(names)}, (40, 30))
    peak, structure = compare_strangers(read_pairs(pair_folders(before, after), 16))
    x, y = ([np.array(Image.open(each / name)) / 127.5 - 1 for name in names] for each in (before, after))
    expected = [peak_signal_noise_ratio(x[(n + 2) % 4], y[n], data_range=2) for n in range(4)]
    assert peak == pytest.approx(np.mean(expected), abs=1e-4)
    assert 0 < structure < 0.5
    one = read_pairs(pair_folders(before, folder("single", {"0.png": 0})), 16)
    assert compare_strangers(one) is None
