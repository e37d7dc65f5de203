"""Small random CLIP folders in transformers' format, and LAION's aesthetic head."""

import json

import numpy as np

from simjax.evaluation.clip.tokens import END, START
from simjax.porting.maps import clip
from tests.helpers import files

VISION = {"width": 24, "depth": 2, "heads": 3, "hidden": 40, "resolution": 28, "patch": 7}
TEXT = {"width": 16, "depth": 3, "heads": 2, "hidden": 20, "vocabulary": 60, "length": 10}
PROJECTION = 12


def foreign(projection=PROJECTION):
    """Random tensors with transformers' names and layouts, in the sizes above."""
    random = np.random.default_rng(2)
    shapes = {
        "logit_scale": (),
        "visual_projection.weight": (projection, VISION["width"]),
        "text_projection.weight": (projection, TEXT["width"]),
        "text_model.embeddings.token_embedding.weight": (TEXT["vocabulary"], TEXT["width"]),
        "text_model.embeddings.position_embedding.weight": (TEXT["length"], TEXT["width"]),
        "vision_model.embeddings.class_embedding": (VISION["width"],),
        "vision_model.embeddings.patch_embedding.weight": (VISION["width"], 3, 7, 7),
        "vision_model.embeddings.position_embedding.weight": (17, VISION["width"]),
    }
    norms = {"text_model.final_layer_norm": TEXT["width"]}
    norms |= {
        f"vision_model.{name}": VISION["width"] for name in ("pre_layrnorm", "post_layernorm")
    }
    for tower, sizes in (("text_model", TEXT), ("vision_model", VISION)):
        width, hidden = sizes["width"], sizes["hidden"]
        for layer in range(sizes["depth"]):
            block = f"{tower}.encoder.layers.{layer}"
            linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
            linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
            for name, shape in linear.items():
                shapes[f"{block}.{name}.weight"] = shape
                shapes[f"{block}.{name}.bias"] = shape[:1]
            norms |= {f"{block}.layer_norm{number}": width for number in (1, 2)}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    tensors = {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    return tensors | {  # buffers in files of older transformers
        "text_model.embeddings.position_ids": np.arange(10)[None],
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }


MERGES = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("'", "s</w>")]
VOCABULARY = 26


def write_vocabulary(folder):
    """Writes vocab.json and merges.txt of a few letters; returns the ids of the 26 tokens."""
    letters = "lowernst'"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "1</w>", "!</w>"]
    pieces += ["".join(pair) for pair in MERGES] + [START, END]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return numbers


def write_folder(folder, projection=PROJECTION):
    """Writes a CLIPModel folder: config.json, weights and tokenizer."""
    towers = {
        "text_config": (TEXT, clip.TEXT, {"eos_token_id": VOCABULARY - 1}),
        "vision_config": (VISION, clip.VISION, {"hidden_act": "gelu"}),
    }
    config = {"model_type": "clip", "projection_dim": projection}
    for name, (sizes, fields, others) in towers.items():
        config[name] = {field: sizes[ours] for field, (ours, _) in fields.items()} | others
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    files.write_safetensors(folder / "model.safetensors", foreign(projection))
    write_vocabulary(folder)


HEAD = {"0": (768, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}


def aesthetic_head():
    """Random tensors under the published names, (out, in), with scores of both signs."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, (features_in, features) in HEAD.items():
        kernel = random.standard_normal((features, features_in)) / np.sqrt(features_in)
        tensors[f"layers.{name}.weight"] = kernel.astype(np.float32)
        tensors[f"layers.{name}.bias"] = random.standard_normal(features).astype(np.float32)
    tensors["layers.0.weight"] *= 50
    return tensors
