"""CLIP against transformers, from saved folders: embeddings, image processing, tokens."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from simjax.evaluation.clip import aesthetic
from simjax.evaluation.clip import score as clip_score
from simjax.evaluation.clip.tokens import END, START, Tokenizer
from simjax.networks.clip import Clip
from simjax.porting.files import read_weights
from simjax.porting.maps import clip, rules
from tests.helpers.clip_files import VOCABULARY, write_vocabulary
from tests.helpers.official import worst

VISION = [
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 48, "image_size": 28, "patch_size": 7},
    {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    | {"intermediate_size": 72, "image_size": 33, "patch_size": 8, "hidden_act": "gelu"},
]
TEXT = [
    {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    | {"intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 16}
    | {
        "bos_token_id": 0,
        "eos_token_id": 2,
    },  # eos_token_id 2: transformers pools at the largest token id
    {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5}
    | {"intermediate_size": 64, "vocab_size": 30, "max_position_embeddings": 9}
    | {"bos_token_id": 24, "eos_token_id": VOCABULARY - 1, "hidden_act": "gelu"},
]
PROJECTION = [20, 12]
SIZES = pytest.mark.parametrize("sizes", [0, 1], ids=["small", "other"])


def model(sizes):
    """Random weights, large enough that attention is not uniform."""
    config = transformers.CLIPConfig(
        vision_config=VISION[sizes], text_config=TEXT[sizes], projection_dim=PROJECTION[sizes]
    )
    theirs = transformers.CLIPModel(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "layrnorm" in name:
            parameter.data += 0.3 * noise
        else:
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "embedding" not in name else 1
            parameter.data = noise / fan_in**0.5
    return theirs.eval()


def ported(folder):
    """Our network with the weights of a folder."""
    weights = read_weights.read(folder)
    sizes = clip.describe(weights.config)
    graphdef, like = nnx.split(
        nnx.eval_shape(lambda: Clip(**sizes, dtype=np.float32, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graphdef, rules.apply(clip.RULES, weights.tensors, nnx.to_pure_dict(like)))


def save_as_bin(theirs, folder):
    """Saves pytorch_model.bin like older transformers, position_ids included."""
    theirs.config.save_pretrained(folder)
    buffers = {
        f"{tower}_model.embeddings.position_ids": torch.arange(length)[None]
        for tower, length in (("text", 16), ("vision", 17))
    }
    torch.save(theirs.state_dict() | buffers, folder / "pytorch_model.bin")


SAVE = {"safetensors": lambda theirs, folder: theirs.save_pretrained(folder), "bin": save_as_bin}


@pytest.mark.parametrize("kind", list(SAVE))
@SIZES
def test_image_and_text_embeddings(tmp_path, sizes, kind):
    theirs = model(sizes)
    SAVE[kind](theirs, tmp_path)
    ours = ported(tmp_path)
    random = np.random.default_rng(0)
    resolution, length = VISION[sizes]["image_size"], TEXT[sizes]["max_position_embeddings"]
    pixels = random.standard_normal((3, resolution, resolution, 3)).astype(np.float32)
    lengths = np.array([length, length // 2, 3])
    mask = np.arange(length) < lengths[:, None]
    tokens = random.integers(3, VOCABULARY - 1, mask.shape)
    tokens[np.arange(3), lengths - 1] = VOCABULARY - 1
    with torch.no_grad():
        of_images = theirs.get_image_features(
            pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2)
        ).pooler_output
        of_texts = theirs.get_text_features(
            input_ids=torch.tensor(tokens * mask),
            attention_mask=torch.tensor(mask, dtype=torch.long),
        ).pooler_output
    assert of_images.shape == of_texts.shape == (3, PROJECTION[sizes])
    assert worst(np.asarray(jax.jit(ours.embed_images)(pixels)), of_images.numpy()) < 1e-4
    assert worst(np.asarray(jax.jit(ours.embed_texts)(tokens, mask)), of_texts.numpy()) < 1e-4
    np.testing.assert_allclose(ours.logit_scale[...], theirs.logit_scale.item(), rtol=1e-6)


def test_sizes_in_text_config_dict_of_older_configs(tmp_path):
    """transformers and simjax read the same sizes from one config.json."""
    theirs = model(0)
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"text_config_dict": {"hidden_size": 64, "num_hidden_layers": 5}}
    values |= {"vision_config_dict": {"patch_size": 4}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    read = transformers.CLIPConfig.from_pretrained(tmp_path)
    ours = clip.describe(values)
    for tower, fields, name in (
        (read.text_config, clip.TEXT, "text"),
        (read.vision_config, clip.VISION, "vision"),
    ):
        for field, (own, _) in fields.items():
            assert getattr(ours[name], own) == getattr(tower, field)
    assert ours["text"].end == read.text_config.eos_token_id


IMAGES = [(224, 224), (512, 512), (300, 637), (777, 250), (64, 48)]


@pytest.mark.parametrize("shape", IMAGES)
def test_image_processing(shape):
    processor = transformers.CLIPImageProcessor()
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected = processor(image, input_data_format="channels_last", return_tensors="np")
    found = clip_score.normalised(clip_score.cropped(image[None], 224))
    expected = expected["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


PROMPTS = [
    "Lower  LOW's\nNew 11!",
    "",
    "  l'ow's? re-newest...  ",
    "slower, slowest 'tis 1st  LOWER-er",
    "re\u0301new zebra\u00e9 \u00c9 \u732b \U0001f600 x",
    f"new {END} low",
    "low\tnew\u3000lower",
    "lower newest " * 20,
]


def their_tokenizer(folder):
    numbers = write_vocabulary(folder)
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    pairs = [tuple(line.split()) for line in merges if line]
    return transformers.CLIPTokenizer(vocab=numbers, merges=pairs)


@pytest.mark.parametrize("saved", ["vocab.json", "tokenizer.json"])
def test_tokens(tmp_path, saved):
    theirs = their_tokenizer(tmp_path)
    if saved == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        assert (tmp_path / saved).is_file()
    expected = theirs(PROMPTS, padding="max_length", max_length=20, truncation=True)
    found = Tokenizer(tmp_path, 20)(PROMPTS)
    np.testing.assert_array_equal(found.mask, np.array(expected["attention_mask"], bool))
    np.testing.assert_array_equal(found.ids, expected["input_ids"])
    assert found.truncated == sum(len(ids) > 20 for ids in theirs(PROMPTS)["input_ids"]) > 0
    assert theirs.convert_tokens_to_ids([START, END]) == [VOCABULARY - 2, VOCABULARY - 1]


def test_clip_scores_of_a_folder(tmp_path):
    theirs, tokenizer = model(1), their_tokenizer(tmp_path)
    theirs.save_pretrained(tmp_path)
    resolution = VISION[1]["image_size"]
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": resolution}, crop_size={"height": resolution, "width": resolution}
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 61, 3)).astype(np.uint8)
    prompts = ["lower", "New LOW's", "newest " * 9]
    inputs = tokenizer(
        prompts, padding="max_length", max_length=9, truncation=True, return_tensors="pt"
    )
    pixels = processor(list(images), input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        output = theirs(**inputs, **pixels)
    cosines = (output.image_embeds * output.text_embeds).sum(1).numpy()
    embedder = clip_score.load_clip(tmp_path, batch=2)
    of_prompts, truncated = embedder.prompts(prompts)
    of_images = embedder.images(images)
    for sign in (1, -1):  # random cosines have both signs
        found = clip_score.clip_scores(of_images, sign * of_prompts)
        np.testing.assert_allclose(found, 100 * np.maximum(sign * cosines, 0), atol=1e-2)
    assert (abs(cosines) > 0.01).all()
    assert truncated == 1


def test_aesthetic_head(tmp_path):
    """A head saved by torch under the published names."""
    torch.manual_seed(0)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    layers = torch.nn.Sequential(
        linear(768, 1024),
        dropout(0.2),
        linear(1024, 128),
        dropout(0.2),
        linear(128, 64),
        dropout(0.1),
        linear(64, 16),
        linear(16, 1),
    ).eval()
    path = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(torch.nn.ModuleDict({"layers": layers}).state_dict(), path)
    embeddings = torch.randn(4, 768)
    with torch.no_grad():
        expected = layers(torch.nn.functional.normalize(embeddings))[:, 0].numpy()
    found = aesthetic.aesthetic_scores(aesthetic.load(path), embeddings.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
