"""Captions of labelled data: templates, encoded once, by class, training and held out."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from simjax import config
from simjax.data import conditions
from simjax.diffusion import guidance
from simjax.errors import ConfigError
from simjax.models.model import require_fit
from simjax.networks.conditions import Classes, Prompts
from simjax.text import captions
from simjax.typing import Caption
from tests.helpers.configs import load

TEXT = config.Text(
    t5=config.T5(
        vocabulary=24,
        width=16,
        depth=1,
        heads=2,
        head_width=8,
        hidden=16,
        buckets=8,
        max_distance=16,
    ),
    length=6,
    words=("zero|0", "one|1", "two|2"),
    templates=("the digit {}", "{}"),
    held_out=("write a {}",),
)


def prepared(folder, **changes):
    options = config.Config(text=dataclasses.replace(TEXT, **changes))
    return captions.prepare(options.text, epath.Path(folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("run"))


def test_every_class_has_its_captions_in_order(made, tmp_path_factory):
    assert made.of_classes.dropped.shape == (3, 4)
    assert made.held_out.dropped.shape == (3, 2)
    assert made.of_classes.embedding.shape == (3, 4, 6, 16)
    # Tokens of a caption: its words and the end.
    np.testing.assert_array_equal(made.of_classes.mask.sum(-1), [[4, 4, 2, 2]] * 3)
    np.testing.assert_array_equal(made.held_out.mask.sum(-1), [[4, 4]] * 3)
    assert len(made.cache) == 12
    everything = made.cache.read(np.arange(12)).embedding.reshape(3, 4, 6, 16)
    np.testing.assert_array_equal(everything, made.of_classes.embedding)


def test_different_words_have_different_features(made):
    # The token of the word is the third of "the digit WORD" and the first of "WORD".
    words = np.asarray(made.of_classes.embedding[:, :2, 2], np.float32).reshape(6, -1)
    distances = np.linalg.norm(words[:, None] - words[None], axis=-1)
    assert distances[~np.eye(6, dtype=bool)].min() > 0.5


def test_samples_cycle_through_held_out_captions(made):
    found = made.conditions(np.array([0, 1, 2, 0, 1, 2, 0]))
    expected = made.held_out.embedding
    for row, (number, turn) in zip(
        found.embedding, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 0)], strict=True
    ):
        np.testing.assert_array_equal(row, expected[number, turn])


def stamps(run):
    """Modification time of each shard."""
    shards = (run / "text" / "trained").glob("*.*")
    return {p.name: p.stat().st_mtime_ns for p in shards if p.name != "cache.json"}


def test_captions_are_encoded_once(tmp_path):
    first = prepared(tmp_path)
    before = stamps(tmp_path)
    again = prepared(tmp_path)
    assert stamps(tmp_path) == before
    np.testing.assert_array_equal(first.held_out.embedding, again.held_out.embedding)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ("the digit",)}, r"missing in: \['the digit'\]"),
        ({"held_out": ()}, "at least one template each"),
        ({"words": ("zero|0", "one")}, "the same number of words per class"),
    ],
)
def test_templates_and_words_must_fit(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        prepared(tmp_path, **changes)


def test_a_run_without_text_has_none(tmp_path):
    assert captions.prepare(config.Config().text, epath.Path(tmp_path)) is None


def test_networks_and_captions_fit_together(made):
    network = config.PixArt(caption_channels=16, caption_length=6)
    require_fit(network, made)
    with pytest.raises(ConfigError, match="reads captions, but there are none"):
        require_fit(network, None)
    with pytest.raises(ConfigError, match="DiT reads no captions; leave them out"):
        require_fit(config.DiT(), made)
    for change in ({"caption_channels": 32}, {"caption_length": 5}):
        with pytest.raises(ConfigError, match="have up to 6 tokens of 16 channels"):
            require_fit(dataclasses.replace(network, **change), made)


def test_a_drawn_caption_is_of_its_class(made):
    classes = np.repeat([0, 1, 2], 40)
    drawn = conditions.caption_of(jax.random.key(0), classes, made.of_classes)
    for row, number in zip(np.asarray(drawn.embedding), classes, strict=True):
        assert (row == made.of_classes.embedding[number]).all((1, 2)).any()
    zeros = np.asarray(drawn.embedding[:40])
    assert len(np.unique(zeros.astype(np.float32).reshape(40, -1), axis=0)) == 4


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_conditions_are_dropped_with_the_given_probability(probability):
    caption = Caption(np.ones((4000, 1, 1)), np.ones((4000, 1), bool), np.zeros(4000, bool))
    dropped = guidance.dropped(jax.random.key(0), caption, Prompts(1, 1).null, probability)
    assert abs(dropped.dropped.mean() - probability) < 0.03
    classes = np.eye(5, dtype=np.float32)[np.arange(4000) % 5]
    labels = guidance.dropped(jax.random.key(0), classes, Classes(5).null, probability)
    assert abs(1 - labels.sum(1).mean() - probability) < 0.03


def test_the_captioned_digits_config_is_consistent():
    options = load("captioned_digits")
    assert len(options.text.words) == 10
    assert not set(options.text.templates) & set(options.text.held_out)
    assert options.network.caption_channels == options.text.t5.width
    assert options.network.caption_length == options.text.length
