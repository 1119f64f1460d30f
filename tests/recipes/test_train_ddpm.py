"""The training recipe on pictures of one gray bar each, at 8x8, in seconds."""

import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import nearfar

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import typer

import train_ddpm

TINY = ["--size", "8", "--channels", "8,32", "--batch", "8", "--attention", "4", "--split", "train/"]


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "bars.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(16):
            pixels = np.full((8, 8, 3), 30, np.uint8)
            pixels[:, number % 8] = 220
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"{'train' if number < 8 else 'test'}/{number:02}.png", buffer.getvalue())
    return path


def command(data: Path, out: Path, steps: int) -> Result:
    app = typer.Typer()
    app.command()(train_ddpm.main)
    return CliRunner().invoke(app, [str(data), str(out), "--steps", str(steps), "--save-every", "5", *TINY])


def train(data: Path, out: Path, steps: int) -> str:
    result = command(data, out, steps)
    assert result.exit_code == 0, result.output
    return result.output


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/unet/diffusion_pytorch_model.safetensors")


def test_only_the_named_split_is_read(bars):
    assert len(train_ddpm.load_images(bars, "train/", 8)) == 8
    assert len(train_ddpm.load_images(bars, "", 8)) == 16


def test_every_batch_meets_every_part_of_the_schedule():
    times = train_ddpm.stratified_times(10, 1000, torch.Generator().manual_seed(0))
    assert sorted((times // 100).tolist()) == list(range(10))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [train_ddpm.learning_rate(step, 1000, 1e-3) for step in range(1001)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (199, 200)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_training_learns(bars):
    """The loss of a network that has learned something is well below the 1 that predicting no noise costs."""
    torch.manual_seed(0)
    images = train_ddpm.load_images(bars, "train/", 8)
    run = train_ddpm.start_run(train_ddpm.new_network(8, [8, 32], 1, 4), "cpu", 0)
    schedule = train_ddpm.DDPMScheduler().alphas_cumprod
    objective = train_ddpm.Objective(schedule, min_snr=1e9, flip=False)
    losses = [train_ddpm.train_step(run, objective, images, 32, 2e-3, 0.9, mixed=False) for _ in range(60)]
    assert np.mean(losses[:5]) > 0.8
    assert np.mean(losses[-20:]) < 0.4


def test_a_stopped_run_goes_on_to_the_same_weights(bars, tmp_path):
    train(bars, tmp_path / "whole", 10)
    stopped = tmp_path / "stopped"
    original, calls = train_ddpm.train_step, []

    def stop_after_seven(*arguments, **options):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_ddpm, "train_step", stop_after_seven)
        assert command(bars, stopped, 10).exit_code != 0
    assert "from step 5" in train(bars, stopped, 10)
    whole, resumed = weights(tmp_path / "whole"), weights(stopped)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_result_is_a_half_precision_model_that_nearfar_loads(bars, tmp_path):
    train(bars, tmp_path, 5)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float16}
    model = nearfar.load_model(tmp_path / "model")
    assert nearfar.local_sample(model, torch.zeros(2, 3, 8, 8), strength=0.5, steps=2).shape == (2, 3, 8, 8)
