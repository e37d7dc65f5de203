"""CLIP's files as transformers writes them: weights and vocabulary, small and random."""

import json

import numpy as np

from simjax.evaluation.clip.tokens import END, START

VISION = {"width": 24, "depth": 2, "heads": 3, "hidden": 40, "resolution": 28, "patch": 7}
TEXT = {"width": 16, "depth": 3, "heads": 2, "hidden": 20, "vocabulary": 60, "length": 10}
PROJECTION = 12


def foreign():
    """Random tensors as transformers names and lays them out, of the sizes above."""
    random = np.random.default_rng(2)
    shapes = {
        "logit_scale": (),
        "visual_projection.weight": (PROJECTION, VISION["width"]),
        "text_projection.weight": (PROJECTION, TEXT["width"]),
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
    return tensors | {  # buffers of files that older transformers wrote
        "text_model.embeddings.position_ids": np.arange(10)[None],
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }


MERGES = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("'", "s</w>")]
VOCABULARY = 26


def write_vocabulary(folder):
    """vocab.json and merges.txt of a few letters; returns the number of each of 26 pieces."""
    letters = "lowernst'"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "1</w>", "!</w>"]
    pieces += ["".join(pair) for pair in MERGES] + [START, END]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return numbers
