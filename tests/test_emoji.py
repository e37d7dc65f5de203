"""The emoji demonstration: zip and strip of notebooks/emoji.py, and configs/emoji.py."""

import dataclasses
import importlib.util
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from simjax import config, data
from simjax.errors import ConfigError
from simjax.runs import check, distill
from tests.helpers.configs import load, shrunk

FOLDER = Path(__file__).parents[1] / "notebooks"
EACH = 2  # images per emoji in these tests


@pytest.fixture(scope="module")
def emoji():
    """notebooks/emoji.py as a module, with fewer images."""
    spec = importlib.util.spec_from_file_location("emoji", FOLDER / "emoji.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.EACH = EACH
    return module


def disc(character: str) -> Image.Image:
    """Stand-in for a glyph: a disc whose colour depends on the character."""
    colour = np.random.default_rng(ord(character)).integers(0, 256, 3)
    picture = Image.new("RGBA", (40, 36))
    ImageDraw.Draw(picture).ellipse((4, 2, 36, 34), fill=(*colour.tolist(), 255))
    return picture


def drawing(emoji):
    """Draws with the installed font, or the stand-in."""
    try:
        return emoji.drawing(emoji.find_font(None))
    except SystemExit:
        return disc


@pytest.fixture(scope="module")
def made(emoji, tmp_path_factory):
    path = tmp_path_factory.mktemp("emoji") / "data" / "emoji.zip"
    emoji.make_zip(path, emoji.CONFIG["EMOJI"], emoji.CONFIG["WORDS"], drawing(emoji))
    return path


def test_the_zip_cycles_through_the_emoji(emoji, made):
    found, words = data.open(f"zip:{made}"), emoji.CONFIG["WORDS"]
    assert found.shape == (32, 32, 3) and found.label_dim == len(words)
    np.testing.assert_array_equal(found.labels, np.tile(np.arange(len(words)), EACH))
    with zipfile.ZipFile(made) as archive:
        assert json.loads(archive.read("dataset.json"))["captions"] == list(words)


def test_images_are_drawn_on_white_near_the_middle(emoji, tmp_path):
    images = emoji.make_zip(tmp_path / "some.zip", "🐶🐱🌹" * 5, ("a",) * 15, disc)
    assert images.shape == (15 * EACH, 32, 32, 3)
    assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    for image, character in zip(images, "🐶🐱🌹" * 5 * EACH, strict=True):
        np.testing.assert_array_equal(image[16, 16], disc(character).getpixel((20, 18))[:3])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) > 15


def test_the_zip_is_reproducible(emoji, tmp_path):
    for name in ("one", "two"):
        emoji.make_zip(tmp_path / name, "🐶🐱", ("dog face", "cat face"), disc)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_missing_or_broken_font_is_rejected_with_the_package_to_install(
    emoji, monkeypatch, tmp_path
):
    monkeypatch.setattr(emoji.font_manager, "findSystemFonts", lambda: ["/fonts/DejaVuSans.ttf"])
    with pytest.raises(SystemExit, match=r"No NotoColorEmoji.ttf among the 1 .*apt install"):
        emoji.find_font(None)
    with pytest.raises(SystemExit, match="no such file; expected NotoColorEmoji.ttf"):
        emoji.find_font(tmp_path / "absent.ttf")
    (tmp_path / "broken.ttf").write_text("no font")
    with pytest.raises(SystemExit, match="broken.ttf: .*bitmaps of size 109"):
        emoji.drawing(tmp_path / "broken.ttf")


def test_a_font_without_an_emoji_is_rejected(emoji):
    dejavu = emoji.font_manager.findfont("DejaVu Sans")  # matplotlib's own
    with pytest.raises(SystemExit, match=r"lacks .*U\+1F9FF"):
        emoji.drawing(Path(dejavu))("🧿")


def test_captions_fit_the_encoder_and_held_out_emoji_have_known_words(emoji):
    text, left_out = load("emoji").text, emoji.CONFIG["LEFT_OUT"]
    assert len(set(text.words)) == len(text.words) == len(emoji.CONFIG["EMOJI"])
    templates = (*text.templates, *text.held_out)
    longest = max(len(each.format(word).split()) for each in templates for word in text.words)
    assert longest < text.length  # plus the end token
    words = {word for each in (*text.words, *templates) for word in each.split()}
    assert len(words) + 3 <= text.t5.vocabulary
    assert not set(left_out) & set(emoji.CONFIG["EMOJI"])
    trained = {word for each in text.words for word in each.split()}
    assert {word for each in left_out.values() for word in each.split()} <= trained
    assert set(emoji.SHOWN) <= set(emoji.CONFIG["EMOJI"])


def shortened(made: Path, generator: str) -> config.Config:
    options = load("emoji", generator)
    options.data.source = f"zip:{made}"
    network = shrunk(options.network)
    options.network = dataclasses.replace(network, resolution=options.network.resolution)
    options.steps = options.teacher.steps = 2
    options.batch = options.teacher.batch = 4
    options.log_every = options.sample_every = options.checkpoint_every = 1
    options.grid = 2
    options.evaluation = config.Evaluation(
        features=("pixels",), metrics=("precision_recall",), samples=8, teacher_steps=(2,), batch=4
    )
    return options


@pytest.mark.whole_runs
def test_two_runs_with_one_teacher_make_a_strip(emoji, made, tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    distill.distill(shortened(made, "one_step"), str(one))
    four.mkdir()
    shutil.copytree(one / "teacher", four / "teacher")
    distill.distill(shortened(made, "four_steps"), str(four))
    assert not (four / "checkpoints_teacher").exists()  # no teacher was trained
    emoji.strip(str(one), str(four), tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.width > 2 * picture.height
        assert np.asarray(picture.convert("RGB")).std(axis=(0, 1)).min() > 10


def test_the_config_is_valid_and_a_missing_zip_is_reported(tmp_path):
    options = load("emoji")
    check.check(options, devices=1)
    with pytest.raises(ConfigError, match="zip:data/emoji.zip: no such file"):
        data.open(options.data.source)
