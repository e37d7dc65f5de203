"""CLIP score in closed form, preprocessing of images and texts, scores from a model folder."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from simjax.errors import ConfigError
from simjax.evaluation.clip import aesthetic
from simjax.evaluation.clip import score as clip_score
from simjax.evaluation.clip import tokens as clip_tokens
from simjax.evaluation.clip.tokens import END, START, Tokenizer
from simjax.networks.clip import Clip
from simjax.porting.maps import clip, rules
from tests.helpers import files
from tests.helpers.clip_files import TEXT, VISION, foreign, write_folder

# The score


def test_scores_are_a_hundred_times_the_cosine_clipped_at_zero():
    angles = np.radians([0, 60, 90, 120, 180])
    images = 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    texts = np.tile(np.array([0.1, 0], np.float32), (5, 1))
    found = clip_score.clip_scores(images, texts)
    np.testing.assert_allclose(found, [100, 50, 0, 0, 0], atol=1e-4)


def test_scores_are_per_pair_and_ignore_norms():
    random = np.random.default_rng(0)
    images, texts = (random.standard_normal((6, 32)).astype(np.float32) for _ in range(2))
    texts += images
    expected = [
        100 * max(i @ t / (np.sqrt(i @ i) * np.sqrt(t @ t)), 0)
        for i, t in zip(images.astype(float), texts.astype(float), strict=True)
    ]
    found = clip_score.clip_scores(images, texts)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(clip_score.clip_scores(1000 * images, texts), found, rtol=1e-6)


def test_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="not all numbers are finite"):
        clip_score.clip_scores(np.ones((2, 3)), np.full((2, 3), np.nan))


# Images


def bicubic_matrix(length, size):
    """Weights of a cubic with a = -1/2, widened for downsampling; zero beyond the edge."""
    scale = max(length / size, 1)
    centres = (np.arange(size)[:, None] + 0.5) * length / size
    x = abs(np.arange(length) + 0.5 - centres) / scale
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("shape", "resized"), [((50, 75), (20, 30)), ((31, 12), (51, 20))])
def test_images_are_resized_by_a_bicubic_filter(shape, resized):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    rows, columns = (bicubic_matrix(*sides) for sides in zip(shape, resized, strict=True))
    expected = np.einsum("ih,hwc,jw->ijc", rows, image, columns).clip(0, 255)
    top, left = ((side - 20) // 2 for side in resized)
    found = clip_score.cropped(image[None], 20)[0]
    error = abs(found - expected[top : top + 20, left : left + 20])
    assert error.mean() < 0.6  # PIL rounds and clips to bytes after each axis
    assert np.median(error) < 0.5
    assert np.percentile(error, 90) < 1.5


def test_the_centre_is_cropped():
    images = np.random.default_rng(0).integers(0, 256, (2, 13, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(clip_score.cropped(images, 8), images[:, 2:10])
    turned = images.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(clip_score.cropped(turned, 8), turned[:, :, 2:10])


def test_grey_images_become_rgb():
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 1)).astype(np.uint8)
    np.testing.assert_array_equal(clip_score.cropped(images, 9), images.repeat(3, axis=3))
    with pytest.raises(ConfigError, match="2 channels"):
        clip_score.cropped(images.repeat(2, axis=3), 9)


def test_each_colour_channel_has_its_own_normalisation():
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0, 1] = 255
    black, white = np.asarray(clip_score.normalised(images))[0, 0]
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(white - black, 1 / np.array(deviation), rtol=1e-5)
    np.testing.assert_allclose(-black / (white - black), mean, rtol=1e-5)


# Tokens


@pytest.fixture
def folder(tmp_path):
    """A folder of a small random CLIPModel."""
    write_folder(tmp_path)
    return tmp_path


def pieces_of(tokens, row, folder):
    names = {
        number: piece for piece, number in json.loads((folder / "vocab.json").read_text()).items()
    }
    return [names[number] for number in tokens.ids[row, tokens.mask[row]]]


def test_texts_are_lower_cased_and_merged_within_words(folder):
    tokens = Tokenizer(folder, 16)(["Lower  LOW's\nNew 11!", ""])
    words = ["lo", "w", "er</w>", "low</w>", "'s</w>", "n", "e", "w</w>", "1</w>", "1</w>", "!</w>"]
    assert pieces_of(tokens, 0, folder) == [START, *words, END]
    assert pieces_of(tokens, 1, folder) == [START, END]
    assert tokens.ids.shape == tokens.mask.shape == (2, 16)
    assert tokens.truncated == 0


def test_long_texts_are_truncated_and_counted(folder):
    tokens = Tokenizer(folder, 5)(["low low low", "low low low low", "low " * 100])
    assert [pieces_of(tokens, row, folder) for row in range(3)] == [
        [START, "low</w>", "low</w>", "low</w>", END]
    ] * 3
    assert tokens.truncated == 2


def test_padding_and_truncation_of_a_tokenizer_file_are_ignored(folder):
    expected = Tokenizer(folder, 9)(["lower lower", "new"])
    pieces = clip_tokens._read(folder)
    pieces.enable_truncation(2)
    pieces.enable_padding(length=40)
    pieces.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").unlink()
    found = Tokenizer(folder, 9)(["lower lower", "new"])
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.mask, expected.mask)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_folder_without_a_tokenizer_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match="no tokenizer; expected CLIP's tokenizer.json"):
        Tokenizer(folder, 9)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_damaged_tokenizer_is_refused(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(ConfigError, match="the tokenizer cannot be read"):
        Tokenizer(folder, 9)


def test_a_vocabulary_without_clips_tokens_is_refused(folder):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"the vocabulary lacks <\|startoftext\|>"):
        Tokenizer(folder, 9)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r'pip install "simjax\[text\]"'):
        Tokenizer(folder, 9)


# A folder

IMAGES = np.random.default_rng(3).integers(0, 256, (5, 40, 33, 3)).astype(np.uint8)
PROMPTS = ["low", "New lower!", "", "lower " * 20, "'s"]


def test_embeddings_do_not_depend_on_the_batch_size(folder):
    config = json.loads((folder / "config.json").read_text())
    graphdef, like = nnx.split(
        nnx.eval_shape(lambda: Clip(**clip.describe(config), dtype=jnp.float32, rngs=nnx.Rngs(0)))
    )
    net = nnx.merge(graphdef, rules.apply(clip.RULES, foreign(), nnx.to_pure_dict(like)))
    tokens = Tokenizer(folder, TEXT["length"])(PROMPTS)
    pixels = clip_score.normalised(clip_score.cropped(IMAGES, VISION["resolution"]))
    of_images = np.asarray(net.embed_images(pixels))
    of_prompts = np.asarray(net.embed_texts(tokens.ids, tokens.mask))
    for batch in (2, 8):
        embedder = clip_score.load_clip(folder, batch=batch)
        np.testing.assert_allclose(embedder.images(IMAGES), of_images, rtol=1e-3, atol=1e-4)
        found, truncated = embedder.prompts(PROMPTS)
        np.testing.assert_allclose(found, of_prompts, rtol=1e-3, atol=1e-4)
        assert truncated == 1


def fixed_embedder(of_images, of_prompts):
    return clip_score.Embedder(lambda images: of_images, lambda prompts: (of_prompts, 3), 768, "")


def test_scores_are_per_image_with_their_means():
    random = np.random.default_rng(0)
    of_images = random.standard_normal((5, 768)).astype(np.float32)
    of_prompts = of_images + random.standard_normal((5, 768)).astype(np.float32)
    head = {
        name: {
            "kernel": random.standard_normal(sizes).astype(np.float32),
            "bias": np.ones(sizes[1], np.float32),
        }
        for name, sizes in zip(
            aesthetic.LAYERS,
            zip(aesthetic.WIDTHS[:-1], aesthetic.WIDTHS[1:], strict=True),
            strict=True,
        )
    }
    found = clip_score.scores(IMAGES, PROMPTS, fixed_embedder(of_images, of_prompts), head)
    agreement = clip_score.clip_scores(of_images, of_prompts)
    liking = aesthetic.aesthetic_scores(head, of_images)
    np.testing.assert_allclose(found.pop("clip_score"), agreement)
    np.testing.assert_allclose(found.pop("aesthetic"), liking, rtol=1e-6)
    assert found == {
        "clip_score_mean": pytest.approx(np.mean(agreement)),
        "aesthetic_mean": pytest.approx(np.mean(liking)),
        "truncated": 3,
    }


@pytest.mark.parametrize(("images", "prompts"), [(5, 4), (0, 0)])
def test_every_image_needs_a_prompt(images, prompts):
    with pytest.raises(ConfigError, match=f"{images} images and {prompts} prompts"):
        clip_score.scores(IMAGES[:images], PROMPTS[:prompts], fixed_embedder(None, None), {})


@pytest.mark.parametrize("changes", [{"vocab_size": 25, "eos_token_id": 2}, {"eos_token_id": 24}])
def test_a_tokenizer_of_another_network_is_refused(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    rows = changes.get("vocab_size", TEXT["vocabulary"])
    tensors = foreign()
    name = "text_model.embeddings.token_embedding.weight"
    files.write_safetensors(folder / "model.safetensors", tensors | {name: tensors[name][:rows]})
    with pytest.raises(ConfigError, match="26 tokens, the end token 25, but the network has"):
        clip_score.load_clip(folder)


def test_pooling_at_the_largest_token_requires_it_to_be_the_end_token(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    clip_score.load_clip(folder)
    numbers = json.loads((folder / "vocab.json").read_text())
    numbers |= {"l": numbers[END], END: numbers["l"]}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    with pytest.raises(ConfigError, match="the end token 0, but .* the end token 25"):
        clip_score.load_clip(folder)


def test_weights_that_do_not_fit_are_named_with_the_folder(folder):
    tensors = foreign()
    del tensors["logit_scale"]
    files.write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match="nothing fills logit_scale") as error:
        clip_score.load_clip(folder)
    assert str(error.value).startswith(str(folder))
