"""A tiny frozen model on the disk, folders of pictures, and the option that renews golden files."""

import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; the tests' networks are too small to share
os.environ["NEARFAR_CACHE"] = os.devnull  # nothing of a test is kept, nor taken from another; it cannot be written
os.environ["NEARFAR_MODEL"] = "faces"  # the smallest of the bundled ones, wherever a test names none

FOLDERS = ("", "plain", "with space/in ner", "ünï-çødé/日本")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, str]:
    """Measurements to be shown at the end of the session, by what they measure."""
    return pytestconfig.stash.setdefault(FIGURES, {})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its measurements to the process that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = session.config.stash.get(FIGURES, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Collect what a worker of pytest-xdist has measured; one that crashed has handed over nothing."""
    node.config.stash.setdefault(FIGURES, {}).update(getattr(node, "workeroutput", {}).get("figures", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, value in config.stash.get(FIGURES, {}).items():
        terminalreporter.write_line(f"measured: {name}: {value}")


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes cost seconds each, so a test that starts one says so: `-m "not process"` leaves it out."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this test starts a process: mark it with pytest.mark.process")

    if request.node.get_closest_marker("process") is None:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a seeded UNet of 41 thousand weights for 16x16 colors.

    It predicts the clean image: with random weights that stays in range, where one gray level more or less is seen.
    """
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
        )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    DDPMPipeline(unet, DDPMScheduler(prediction_type="sample")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path):
    """The tiny model, read back the way users' models are."""
    from nearfar.models.loading import load_model

    return load_model(model_folder, "cpu")


@pytest.fixture(scope="session")
def write_pictures() -> Callable[..., list[str]]:
    """Write `count` smooth pictures with names from `first` on, spread over a tree of folders; returns the names."""

    def write(folder: Path, count: int, size: tuple[int, int] = (16, 16), first: int = 0) -> list[str]:
        names = []
        for number in range(first, first + count):
            path = folder / FOLDERS[number % len(FOLDERS)] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth_picture(number, size).save(path)
            names.append(path.relative_to(folder).as_posix())
        return sorted(names)

    return write


@pytest.fixture(scope="session")
def smooth() -> Callable[..., Image.Image]:
    """A picture of random smooth colors; the number is its seed."""
    return smooth_picture


def smooth_picture(number: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
