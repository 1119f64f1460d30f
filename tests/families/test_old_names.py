"""Weights as the first diffusers saved them: attention under its old names, in a pickle (google/ddpm-celebahq-256)."""

import torch
from diffusers import DDPMPipeline, DDPMScheduler

from nearfar.models.loading import load_model
from tiny_models import unet

OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
ATTENTION = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}


def renamed(key):
    for new, old in OLD_NAMES.items():
        key = key.replace(new, old)
    return key


def test_attention_under_its_old_names_is_read(tmp_path):
    network = unet(**ATTENTION)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([500.0, 20.0]).double()
    expected = load_model(tmp_path, "cpu").denoiser(x, t)
    old = {renamed(key): weight for key, weight in network.state_dict().items()}
    assert any(".query." in key for key in old)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(old, tmp_path / "unet/diffusion_pytorch_model.bin")
    torch.testing.assert_close(load_model(tmp_path, "cpu").denoiser(x, t), expected, rtol=0, atol=1e-4)
