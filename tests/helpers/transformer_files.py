"""Writes a transformer's folder in diffusers' format."""

import json

from safetensors.numpy import save_file

CONFIG = {  # a small PixArt-alpha in diffusers' format
    "_class_name": "PixArtTransformer2DModel",
    "norm_type": "ada_norm_single",
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "caption_channels": 20,
}


def write_folder(folder, tensors, values=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)
