"""Our own network of pixels is diffusers', whatever the configuration; what it does not know is left to diffusers."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file
from torch.nn import functional

from benchmarks.cost.gpu import pixels_256
from nearfar.models.folder import load_part
from nearfar.models.lookup import Part
from nearfar.models.unet import PixelUNet
from nearfar.models.unet_files import count_weights, fill, on_small_map, pixel_unet, understood

SMALL = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
ATTENDED = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
EARLY = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
GUIDED = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
}
CIFAR = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
"""google/ddpm-cifar10-32."""

SMALL_CONFIGS = {
    "plain": PLAIN,
    "without attention in the middle": PLAIN | {"add_attention": False},
    "attention": ATTENDED,
    "attention before halving": EARLY | {"downsample_padding": 0},
    "attention before halving by blocks": EARLY | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "halving by blocks": GUIDED | {"attn_norm_num_groups": 4},
    "no norm in the middle attention": GUIDED,
    "other groups in the middle": ATTENDED | {"attn_norm_num_groups": 2},
    "classes": PLAIN | {"num_class_embeds": 5},
    "Fourier features": ATTENDED | {"time_embedding_type": "fourier"},
    "scaled middle": ATTENDED | {"mid_block_scale_factor": 1.4142},
    "centered": ATTENDED | {"center_input_sample": True},
    "learned variance": PLAIN | {"out_channels": 6},
    "gray": PLAIN | {"in_channels": 1, "out_channels": 1},
    "sine first": PLAIN | {"flip_sin_to_cos": False, "freq_shift": 1},
    "wide time, three layers": ATTENDED | {"time_embedding_dim": 24, "layers_per_block": 3},
    "head as wide as the map": ATTENDED | {"attention_head_dim": None},
    "swish": PLAIN | {"act_fn": "swish", "dropout": 0.5, "norm_eps": 1e-6},
}
LARGE_CONFIGS = {
    "CIFAR-10": CIFAR | {"sample_size": 16},
    "CelebA-HQ": pixels_256(guided=False) | {"sample_size": 32},
    "AFHQ": pixels_256(guided=True) | {"sample_size": 32},
}


def theirs(config):
    """diffusers' network with random weights, biases and norms among them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(**config).eval().requires_grad_(False)
        for weight in network.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return network


def ours(network, dtype=torch.float32):
    own = pixel_unet(understood(network.config))
    assert fill(own, network.state_dict(), dtype) == []
    return own.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def inputs(config, batch=2):
    side, draw = config["sample_size"], torch.Generator().manual_seed(1)
    labels = torch.arange(batch) if config.get("num_class_embeds") else None
    return (
        torch.randn(batch, config.get("in_channels", 3), side, side, generator=draw),
        torch.tensor([500.3, 20.0]),
        labels,
    )


@torch.inference_mode()
def answers(config):
    """Of both in float32, and of theirs in float64."""
    network = theirs(config)
    x, t, labels = inputs(config)
    single = network(x, t, class_labels=labels).sample, ours(network)(x, t, labels)
    return *single, network.double()(x.double(), t.double(), class_labels=labels).sample


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("config", SMALL_CONFIGS.values(), ids=SMALL_CONFIGS)
def test_it_is_the_network_of_diffusers(config):
    reference, own, exact = answers(SMALL | config)
    assert own.shape == reference.shape
    assert relative(own, reference) < 1e-6
    assert relative(own, exact) < max(1e-6, 1.25 * relative(reference, exact))
    assert reference.std() > (1e-4 if "time_embedding_type" in config else 0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("config", LARGE_CONFIGS.values(), ids=LARGE_CONFIGS)
def test_published_layouts_differ_from_exact_results_no_more_than_diffusers_does(config):
    """A hundred layers of float32 differ by 2e-6 in any two orders of summing; in float64 it is the same function.

    oneDNN's order depends on the processor and on the layout: channels last lie within .6 to 1.8e-6 of exact results.
    """
    with torch.inference_mode():
        network = theirs(config)
        mine, given = ours(network), inputs(config)
        reference, own = network(*given[:2]).sample, mine(*given)
        with torch.backends.mkldnn.flags(enabled=False):
            plain, mine_plain = network(*given[:2]).sample, mine(*given)
        exact = network.double()(given[0].double(), given[1].double()).sample
    assert relative(mine_plain, exact) < max(1e-6, 1.25 * relative(plain, exact))
    assert relative(own, exact) < 4e-6
    assert relative(own, reference) < 4e-6


@pytest.mark.parametrize("config", [ATTENDED, GUIDED], ids=["DDPM", "guided"])
@torch.inference_mode()
def test_in_float64_it_is_the_same_function(config):
    network = theirs(SMALL | config).double()
    x, t, _ = inputs(SMALL)
    assert relative(ours(network, torch.float64)(x.double(), t), network(x.double(), t).sample) < 1e-13


@torch.inference_mode()
def test_a_doubled_map_is_convolved_by_the_small_kernels():
    draw = torch.Generator().manual_seed(0)
    kernel, x = (torch.randn(shape, generator=draw) for shape in ((5, 4, 3, 3), (2, 4, 6, 3)))
    doubled = functional.conv2d(functional.interpolate(x, scale_factor=2.0), kernel, padding=1)
    corners = functional.conv2d(x, on_small_map(kernel).float(), padding=1).view(2, 2, 2, 5, 7, 4)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = corners[:, row, column, :, row : row + 6, column : column + 3]
        torch.testing.assert_close(part, doubled[:, :, row::2, column::2], rtol=0, atol=1e-5)


UNKNOWN = {
    "a key that it does not know": {"new_key": 1},
    "skip blocks": {"down_block_types": ("SkipDownBlock2D", "DownBlock2D")},
    "a learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "another activation": {"act_fn": "mish"},
    "a class as a time": {"class_embed_type": "timestep"},
    "no middle": {"mid_block_type": None},
    "groups that do not divide": {"norm_num_groups": 3},
    "heads that do not divide": {"attention_head_dim": 3},
    "no number": {"layers_per_block": "2"},
    "lists of other lengths": {"down_block_types": ("DownBlock2D",)},
    "no widths": {"block_out_channels": None},
    "heads of no number": {"attention_heads": 0},
    "an odd number of waves": {"block_out_channels": (4, 8), "freq_shift": 2},
    "a factor of no number": {"mid_block_scale_factor": "large"},
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_what_it_does_not_know_is_left_to_diffusers(change):
    assert understood(SMALL | PLAIN) is not None
    assert understood(SMALL | PLAIN | change) is None


def save(network, folder):
    network.save_pretrained(folder)
    return Part(folder, "UNet2DModel", json.loads((folder / "config.json").read_text()))


@torch.inference_mode()
def test_a_network_of_skip_blocks_runs_in_diffusers(tmp_path):
    blocks = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    network = theirs({"sample_size": 16, "block_out_channels": (32, 32), "layers_per_block": 1, **blocks})
    loaded = load_part(save(network, tmp_path), torch.float32)
    assert isinstance(loaded, UNet2DModel)
    x, t, _ = inputs(SMALL)
    torch.testing.assert_close(loaded(x, t).sample, network(x, t).sample, rtol=0, atol=0)


@torch.inference_mode()
def test_half_precision_and_shards_are_read(tmp_path):
    network = theirs(SMALL | ATTENDED)
    x, t, _ = inputs(SMALL)
    part = save(network.half(), tmp_path)
    whole = load_part(part, torch.float32)
    assert isinstance(whole, PixelUNet)
    assert relative(whole(x, t), network.float()(x, t).sample) < 1e-6
    weights = network.state_dict()
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    for number, names in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        save_file(
            {name: weights[name] for name in names}, tmp_path / f"diffusion_pytorch_model-0000{number}.safetensors"
        )
    assert torch.equal(load_part(part, torch.float32)(x, t), whole(x, t))
    assert load_part(part, torch.float64).dtype == torch.float64


def test_it_counts_the_weights_that_diffusers_has():
    network = theirs(SMALL | GUIDED)
    assert count_weights(ours(network)) == count_weights(network) == sum(p.numel() for p in network.parameters())


def test_one_time_stands_for_all_and_gradients_flow():
    network = ours(theirs(SMALL | GUIDED))
    x, _, _ = inputs(SMALL)
    x.requires_grad_()
    out = network(x, torch.tensor([7.0]))
    torch.testing.assert_close(out, network(x, torch.tensor([7.0, 7.0])), rtol=0, atol=0)
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.norm() > 0


def printed(code):
    """What a process of its own prints: one without the tests' checks of types, which torch.compile cannot read."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.process
def test_the_bundled_model_needs_no_diffusers():
    code = """
import sys, torch, nearfar
model = nearfar.load_model("faces")
model.denoiser(torch.zeros(1, *model.latent_shape), torch.tensor([500.0], dtype=torch.float64))
print(*[name for name in ("diffusers", "transformers", "scipy", "torch._dynamo") if name in sys.modules], "done")
"""
    assert printed(code) == ["done"]


@pytest.mark.process
def test_every_kind_of_block_is_one_graph_without_a_break():
    code = f"""
import torch
from nearfar.models.unet import PixelUNet
from nearfar.models.unet_files import understood
torch.manual_seed(0)
for config in {[SMALL | ATTENDED | {"num_class_embeds": 5}, SMALL | GUIDED, SMALL | EARLY]}:
    network = PixelUNet(understood(config)).eval().requires_grad_(False)
    given = torch.randn(2, 3, 16, 16), torch.tensor([500.3, 20.0])
    given += (torch.tensor([1, 2]),) if "num_class_embeds" in config else ()
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
        print(torch.equal(compiled(*given), network(*given)))
"""
    assert printed(code) == ["True"] * 3
