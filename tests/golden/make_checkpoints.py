"""Write the golden networks of tests/unit/test_checkpoints.py: built and run by their authors' own code.

    python tests/golden/make_checkpoints.py --guided DIR --ddpm DIR --improved DIR

DIR are checkouts of openai/guided-diffusion, pesser/pytorch_diffusion and openai/improved-diffusion; nothing of them
is kept but names, shapes and numbers. A golden file holds the names and shapes of a network's weights, inputs and the
authors' outputs. The weights themselves, a megabyte each, are drawn anew by `draw_weights`, to the last bit.
"""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import torch

OUTPUT = Path(__file__).parent / "checkpoints"
BASE = 32  # channels, in as many groups: the norm of such a level removes the time, so the next has twice as many
SIZE = 16


def draw_weights(shapes, seed):
    """Half precision weights by name: a stream of random bits that numpy keeps the same for ever, cut to 11 bits."""
    stream = np.random.Philox(key=seed)
    return {name: torch.from_numpy(draw(stream, name, tuple(shape))) for name, shape in shapes}


def draw(stream, name, shape):
    """Sized so that a wrong constant shows in the output; of one dimension are norms and biases."""
    uniform = (stream.random_raw(int(np.prod(shape))) >> np.uint64(53)).astype(np.float64) / 1024 - 1
    scale = 0.125 if len(shape) == 1 else 2.0 ** np.round(np.log2(1.2 * np.prod(shape[1:]) ** -0.5))
    offset = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    return (offset + scale * uniform).reshape(shape).astype(np.float16)


def authors(folder, module, name, **options):
    """A network of the authors' own class, from their checkout."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return getattr(importlib.import_module(module), name)(**options)


def ddpm(folder, **options):
    usual = {"ch": BASE, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "in_channels": 3, "resolution": SIZE}
    return authors(folder, "pytorch_diffusion.model", "Model", **usual | options)


def guided(folder, **options):
    usual = {"image_size": SIZE, "in_channels": 3, "model_channels": BASE, "out_channels": 6, "num_res_blocks": 1}
    return authors(folder, "guided_diffusion.unet", "UNetModel", **usual | {"channel_mult": (1, 2)} | options)


def improved(folder, **options):
    usual = {"in_channels": 3, "model_channels": BASE, "out_channels": 3, "num_res_blocks": 1, "channel_mult": (1, 2)}
    return authors(folder, "improved_diffusion.unet", "UNetModel", **usual | options)


def write(name, network, seed, classes=None):
    shapes = [(key, tuple(weight.shape)) for key, weight in network.state_dict().items()]
    network.load_state_dict({key: weight.float() for key, weight in draw_weights(shapes, seed).items()})
    generator = torch.Generator().manual_seed(seed)
    inputs = {"x": torch.randn(2, 3, SIZE, SIZE, generator=generator), "t": torch.tensor([7.0, 600.25])}
    if classes is not None:
        inputs["y"] = torch.tensor([0, classes - 1])
    with torch.no_grad():
        output = network.eval()(*inputs.values())
    arrays = {key: value.numpy() for key, value in inputs.items()} | {"output": output.numpy(), "seed": np.array(seed)}
    listed = {"names": [key for key, _ in shapes], "shapes": [" ".join(map(str, shape)) for _, shape in shapes]}
    OUTPUT.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT / f"{name}.npz", **arrays, **listed)


def write_ddpm(folder):
    write("ddpm", ddpm(folder, attn_resolutions=(SIZE // 2,)), seed=10)
    write("ddpm_deep", ddpm(folder, attn_resolutions=(SIZE,), ch_mult=(1, 2, 2), num_res_blocks=2), seed=11)


def write_guided(folder):
    afhq = {"attention_resolutions": (2,), "num_head_channels": 16, "use_scale_shift_norm": True}
    write("afhq_like", guided(folder, resblock_updown=True, **afhq), seed=20)
    several = {"attention_resolutions": (1, 2), "num_head_channels": 16, "num_classes": 5}
    write("conditional", guided(folder, resblock_updown=True, use_scale_shift_norm=True, **several), seed=21, classes=5)
    plain = {"attention_resolutions": (2,), "num_heads": 4, "out_channels": 3}
    write("new_order", guided(folder, use_new_attention_order=True, **plain), seed=22)
    write("plain", guided(folder, num_res_blocks=2, resblock_updown=True, **plain), seed=23)


def write_improved(folder):
    options = {"attention_resolutions": (1, 2), "num_heads": 4, "use_scale_shift_norm": True}
    write("improved", improved(folder, **options), seed=30)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("guided", "ddpm", "improved"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    folders = parser.parse_args()
    write_ddpm(folders.ddpm)
    write_guided(folders.guided)
    write_improved(folders.improved)


if __name__ == "__main__":
    main()
