"""The training recipe on pictures of one gray bar each, at 8x8, in seconds."""

import json
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
import training_data
from averages import Average
from objective import Objective, stratified_times

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
            side = "left" if number % 8 < 4 else "right"
            archive.writestr(f"{'train' if number < 8 else 'test'}/{side}/{number:02}.png", buffer.getvalue())
    return path


def command(data: Path, out: Path, steps: int, *options: str) -> Result:
    app = typer.Typer()
    app.command()(train_ddpm.main)
    return CliRunner().invoke(app, [str(data), str(out), "--steps", str(steps), "--save-every", "5", *TINY, *options])


def train(data: Path, out: Path, steps: int, *options: str) -> str:
    result = command(data, out, steps, *options)
    assert result.exit_code == 0, result.output
    return result.output


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/unet/diffusion_pytorch_model.safetensors")


def test_only_the_named_split_is_read(bars):
    assert len(training_data.load_images(bars, "train/", 8)) == 8
    assert len(training_data.load_images(bars, "", 8)) == 16


def test_the_folder_of_an_image_is_its_class(bars):
    examples = training_data.load_examples(bars, "train/", 8, classes=True)
    bright = examples.images.float().mean((1, 2)).argmax(1)
    assert examples.labels.tolist() == (bright >= 4).long().tolist()


def test_kept_images_are_not_trained_on(bars):
    examples = training_data.load_examples(bars, "train/", 8)
    trained, kept = training_data.part(examples, 3, seed=0)
    rows = {image.numpy().tobytes() for image in trained.images}
    assert (len(trained), len(kept)) == (5, 3)
    assert not rows & {image.numpy().tobytes() for image in kept.images}


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    plan = train_ddpm.Plan(steps=1000, peak_rate=1e-3, warm_up=200)
    rates = [plan.rate(step, 0.0) for step in range(1001)]
    assert rates.index(max(rates)) in (199, 200)
    assert max(rates) == pytest.approx(1e-3 * 0.9045, rel=2e-3)  # half a cosine, a fifth of the way
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_minutes_end_a_run_as_well_as_steps():
    plan = train_ddpm.Plan(steps=100, minutes=2)
    assert plan.done(10, 60) == pytest.approx(0.5)
    assert plan.done(75, 60) == pytest.approx(0.75)
    assert plan.done(10, 300) == 1


@pytest.mark.parametrize("predict", ["noise", "sample", "v"])
def test_training_learns(bars, predict):
    """The error of v falls well below that of the first steps, whatever is predicted."""
    torch.manual_seed(0)
    examples = training_data.load_examples(bars, "train/", 8)
    run = train_ddpm.start_run(train_ddpm.Shape(8, (8, 32), attention=4).network(), "cpu", 0, (0.1,))
    objective = Objective(train_ddpm.DDPMScheduler().alphas_cumprod, predict, min_snr=5.0)
    plan = train_ddpm.Plan(steps=100, batch=32, peak_rate=3e-3, warm_up=1, flip=False)
    losses = []
    for _ in range(80):
        run.by_level.zero_()
        train_ddpm.train_step(run, objective, examples, plan)
        losses.append((run.by_level[0, 2:].sum() / run.by_level[1, 2:].sum()).item())
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:3])


@pytest.mark.parametrize("options", [(), ("--dropout", "0.2", "--average", "0.02,0.2", "--turn", "--keep", "2")])
def test_a_stopped_run_goes_on_to_the_same_weights(bars, tmp_path, options):
    train(bars, tmp_path / "whole", 10, *options)
    stopped = tmp_path / "stopped"
    original, calls = train_ddpm.train_step, []

    def stop_after_seven(*arguments, **named):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_ddpm, "train_step", stop_after_seven)
        assert command(bars, stopped, 10, *options).exit_code != 0
    torch.randn(7)  # another process has drawn other numbers
    assert "from step 5" in train(bars, stopped, 10, *options)
    whole, resumed = weights(tmp_path / "whole"), weights(stopped)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_result_is_a_half_precision_model_that_nearfar_loads(bars, tmp_path):
    train(bars, tmp_path, 5)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float16}
    model = nearfar.load_model(tmp_path / "model")
    assert nearfar.local_sample(model, torch.zeros(2, 3, 8, 8), strength=0.5, steps=2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("predict", ["noise", "sample", "v"])
def test_nearfar_reads_every_prediction_of_a_patched_network(bars, tmp_path, predict):
    train(bars, tmp_path, 2, "--patch", "2", "--attention", "2", "--predict", predict, "--scale-shift")
    model = nearfar.load_model(tmp_path / "model")
    assert model.latent_shape == (12, 4, 4)
    assert model.image.size == 8


def test_classes_and_learned_variance_are_read_by_nearfar(bars, tmp_path):
    train(bars, tmp_path, 2, "--classes", "--learned-variance")
    model = nearfar.load_model(tmp_path / "model", label=1)
    assert nearfar.local_sample(model, torch.zeros(1, 3, 8, 8), strength=0.5, steps=2).isfinite().all()


def test_the_average_that_draws_best_is_kept(bars, tmp_path):
    output = train(bars, tmp_path, 5, "--average", "0.02,0.3", "--keep", "4")
    choice = json.loads((tmp_path / "choice.json").read_text())
    values = {name: row["value"] for name, row in choice["kernel distance"].items()}
    assert choice["best"] == min(values, key=values.get)
    chosen = load_file(tmp_path / "averages" / choice["best"] / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(chosen[name], tensor) for name, tensor in weights(tmp_path).items())
    assert "held out" in output


def test_an_average_weighs_the_end_of_a_run_as_its_formula_says():
    """Weight of step i after n: (i/n)^(1/reach - 1), normalized; here of the numbers 1 to 200."""
    network = torch.nn.Linear(1, 1, bias=False)
    average = Average.of(network, 0.1)
    for step in range(1, 201):
        network.weight.data.fill_(step)
        average.update(network, step)
    steps = np.arange(1, 201)
    share = steps**9.0 / (steps**9.0).sum()
    assert average.network.weight.item() == pytest.approx((share * steps).sum(), rel=3e-3)


def test_a_widened_network_sees_patches_as_the_small_one_saw_pixels(tmp_path):
    shape = train_ddpm.Shape(8, (8, 32), attention=4)
    train_ddpm.export(shape.network(), train_ddpm.DDPMScheduler(), tmp_path / "small")
    small = train_ddpm.UNet2DModel.from_pretrained(tmp_path / "small", subfolder="unet").float()
    large = train_ddpm.started_from(tmp_path / "small", train_ddpm.Shape(16, (8, 32), attention=4, patch=2))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    patches = train_ddpm.clean(pixels.repeat_interleave(2, 2).repeat_interleave(2, 3), 2)
    expected = small.conv_in(train_ddpm.clean(pixels, 1))
    torch.testing.assert_close(large.conv_in(patches), expected)
    assert large(patches, 5).sample.abs().max() == 0


def test_every_batch_meets_every_part_of_the_schedule():
    times = stratified_times(10, 1000, torch.Generator().manual_seed(0))
    assert sorted((times // 100).tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--predict", "score"), "--predict must be noise, sample or v, got score"),
        (("--keep", "8"), "leaves nothing of 8 images"),
        (("--split", "nowhere/"), "no images below 'nowhere/'"),
    ],
)
def test_wrong_options_end_in_a_sentence(bars, tmp_path, options, words):
    result = command(bars, tmp_path, 5, *options)
    assert result.exit_code != 0
    assert words in " ".join(result.output.replace("│", " ").split())
