"""Folders of a small random T5 encoder in transformers' format, with tokenizer."""

import json

import numpy as np
import safetensors.numpy
import tokenizers

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
WORDS = ["a", "red", "blue", "cat", "dog", "on", "the", "sea", "two"]


def write_tokenizer(path):
    """Writes a tokenizer of WORDS and T5's three special tokens."""
    vocabulary = {word: n for n, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(path))


def write_encoder(folder, seed=0, vocabulary=16):
    """Writes a T5 v1.1 encoder with random weights, and its tokenizer."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    width, inner, hidden = SIZES["d_model"], SIZES["d_kv"] * SIZES["num_heads"], SIZES["d_ff"]

    def matrix(rows, columns):
        return (draw.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    tensors = {"shared.weight": matrix(vocabulary, width) * 5}
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
    for n in range(SIZES["num_layers"]):
        attention, layer = f"encoder.block.{n}.layer.0.", f"encoder.block.{n}.layer.1."
        for name in "qkv":
            tensors[f"{attention}SelfAttention.{name}.weight"] = matrix(inner, width)
        tensors[f"{attention}SelfAttention.o.weight"] = matrix(width, inner)
        for name, shape in (("wi_0", (hidden, width)), ("wi_1", (hidden, width))):
            tensors[f"{layer}DenseReluDense.{name}.weight"] = matrix(*shape)
        tensors[f"{layer}DenseReluDense.wo.weight"] = matrix(width, hidden)
        for norm in (attention, layer):
            tensors[f"{norm}layer_norm.weight"] = np.ones(width, np.float32)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors[table] = matrix(32, SIZES["num_heads"])
    tensors["encoder.final_layer_norm.weight"] = np.ones(width, np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(config | SIZES))
    write_tokenizer(folder / "tokenizer.json")
    return folder
