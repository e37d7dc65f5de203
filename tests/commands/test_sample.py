"""simjax sample: networks, conditions, output files and errors."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from simjax import config
from simjax.models import build, port, samplers
from simjax.models.model import Model
from simjax.runs import report
from simjax.runtime import checkpoint
from simjax.runtime.monitor import to_uint8
from simjax.text import captions
from tests.helpers import checkpoints, subprocesses, text_to_image
from tests.helpers.configs import TEACHER, load
from tests.helpers.encoder_files import write_encoder
from tests.helpers.runs import keep_best, make_run

pytestmark = pytest.mark.whole_runs  # a minute on one CPU core

ROOT = Path(__file__).parent.parent
MOST = 12  # most samples compared per command line
CAPTIONED = config.PixArt(
    resolution=8,
    image_channels=1,
    width=32,
    depth=1,
    heads=2,
    caption_channels=64,
    caption_length=12,
)
PROMPTS = ["write seven", "a drawing of the digit 8"]
LONG = " ".join(["seven"] * 20)
LINES = {
    "all": "--source=run,,--count=12,,--out=all.npz",
    "some": "--source=run,,--count=7,,--classes=3,7,,--seed=1,,--out=some.npz",
    "two calls": "--source=run,,--steps=2,,--count=3,,--out=two.npz",
    "guided": "--source=run,,--network=teacher,,--count=3,,--guidance=2,,--out=guided.npz",
    "best": "--source=run,,--network=best,,--count=3,,--out=~/best.npz",
    "grid": "--source=run,,--network=teacher,,--steps=0,,--count=7,,--columns=3,,--out=grid.png",
    "folder": "--source=net.pkl,,--sigma_init=1.25,,--count=5,,--batch=4,,--out=new/folder/",
    "prompts": f"--source=captioned,,--prompt={PROMPTS[0]},,--prompts=prompts.txt,,--count=3,,"
    f"--prompt={LONG},,--out=prompts.npz",
    "held_out": "--source=captioned,,--count=3,,--classes=4,8,,--out=held_out.npz",
    "latents": "--source=pixart,,--encoder=t5,,--autoencoder=vae,,--prompt=a red cat,,"
    "--prompt=the sea,,--batch=3",
}


MISTAKES = {
    "--seed=0": "expected --source=..., got nothing",
    "--source=run,,more": "got more",
    "--source=run,,--count=0": "--count=0",
    "--source=run,,--network=student": "--network=student",
    "--source=nothing-like-it": "did you mean",
    "--source=run,,--seed=12345678901": "--seed=12345678901",
    "--source=run,,--seed=-1": "--seed=-1",
    "--source=run,,--sigma_init=0": "--sigma_init=0.0: expected a positive number",
    "--source=run,,--out=": "--out= is empty: expected NAME.png, NAME.npz, FOLDER/",
    "--source=run,,--out=pictures.jpg": "--out=pictures.jpg: expected one of NAME.png, NAME.npz, "
    "FOLDER/",
    "--source=run,,--out=x.npz,,--columns=3": "--columns is for a grid, --out=NAME.png",
    "--source=begun,,--network=best": "begun has no best generator: a run keeps one with "
    "--config.evaluation.best=",
    "--source=google/ddpm-cifar10": "hf download google/ddpm-cifar10 --local-dir ddpm-cifar10",
    "--source=captioned,,--prompt=a,,--autoencoder=org/vae": "hf download org/vae --local-dir vae",
    "--source=pixart,,--encoder=org/t5,,--autoencoder=vae,,--prompt=a": "hf download org/t5 ",
    "--source=https://huggingface.co/org/dit": "hf download org/dit --local-dir dit",
    "--source=run,,--out=net.pkl/inside/": "--out=net.pkl/inside/ cannot be written",
    "--source=run,,--classes=3,11": "--classes=3,11: expected numbers from 0 to 9",
    "--source=run,,--guidance=3": "--guidance is for a run's teacher (--network=teacher) or",
    "--source=run,,--network=teacher,,--sigma_init=3": "--sigma_init is for a run's generator or",
    "--source=net.pkl,,--network=teacher": "--network is for a run's",
    "--source=net.pkl,,--network=generator": "--network is for a run's",
    "--source=net.pkl,,--guidance=2": "or published weights with --steps=N. Flags that apply: ",
    "--source=net.pkl,,--steps=3,,--sigma_init=2": "or published weights called once. Flags",
    "--source=run,,--prompt=a": "SongUNet does not use --prompt and --prompts",
    "--source=run,,--encoder=t5": "SongUNet does not use --encoder and --tokenizer",
    "--source=run,,--prompts=none.txt": "none.txt",
    "--source=run,,--prompts=empty.txt": "empty.txt has no prompts",
    "--source=run,,--autoencoder=vae": "its latents have 4 channels, but the network samples 1",
    "--source=broken": "broken/config.json is not valid JSON",
    "--source=begun": "begun/checkpoints does not exist",
    "--source=PixArt-XL-2-512x512": "PixArt needs --prompt=TEXT or --prompts=FILE, --encoder=FOLDER"
    " of a T5 encoder, --autoencoder=FOLDER of diffusers' AutoencoderKL",
    "--source=pixart,,--encoder=t5,,--autoencoder=vae": "PixArt does not use --encoder",
    "--source=pixart,,--autoencoder=vae,,--prompt=a": "PixArt needs --encoder=FOLDER of a T5",
    "--source=pixart,,--encoder=t5,,--prompt=a": "PixArt needs --autoencoder=FOLDER",
    "--source=pixart,,--classes=1,,--prompt=a": "PixArt does not use --classes",
    "--source=wide,,--encoder=t5,,--autoencoder=vae,,--prompt=a": "the text encoder has 32 "
    "channels, but the network reads 20",
}


class Made(NamedTuple):
    """Folder with two runs and other sources, and (exit message, output) of each command line."""

    folder: Path
    digits: Model
    digits_generator: Any
    captioned: Model
    captioned_generator: Any
    best: Any
    done: dict[str, list]

    def output(self, name):
        return subprocesses.output(self.done[LINES[name]])

    def arrays(self, name, where="."):
        self.output(name)
        with np.load(self.folder / where / f"{name}.npz") as found:
            return found["arr_0"], found.get("arr_1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    digits = make_run(folder / "run", load("digits"), TEACHER)
    captioned = make_run(folder / "captioned", load("captioned_digits"), CAPTIONED)
    checkpoints.write(folder / "net.pkl", TEACHER)
    for name, channels in (("pixart", 32), ("wide", 20)):
        text_to_image.write_pixart(folder / name, channels)
    write_encoder(folder / "t5")
    text_to_image.write_autoencoder(folder / "vae")
    (folder / "prompts.txt").write_text(f"{PROMPTS[1]}\n\n")
    (folder / "empty.txt").write_text("\n")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    shutil.copytree(folder / "run", folder / "begun", ignore=lambda *_: ["checkpoints"])
    best = keep_best(folder / "run", digits[0], step=5)
    (folder / "home").mkdir()
    lines = [*LINES.values(), *MISTAKES]
    done = subprocesses.several("sample", lines, folder, HOME=str(folder / "home"))
    return Made(folder, *digits, *captioned, best, done)


def one_call(model, params, cond, seed=0):
    """Samples D(1.25 z; 1.25) in one batch; z of sample i depends only on seed and i."""
    sigma = 1.25  # sigma_init of both configs
    count = len(jax.tree.leaves(cond)[0])
    key = jax.random.fold_in(build.key(model.config, "evaluation"), seed)
    shape, rows = build.image_shape(model.config), np.arange(MOST)
    keys = [jax.random.split(jax.random.fold_in(key, i))[0] for i in rows]
    z = jnp.stack([jax.random.normal(key, shape) for key in keys])
    cond = jax.tree.map(lambda leaf: np.asarray(leaf)[rows % count], cond)
    x0 = jax.jit(model.denoise)(params, sigma * z, jnp.full(MOST, sigma), cond)
    return to_uint8(np.asarray(x0))[:count]


def assert_same(ours, expected):
    """Equal up to rounding: batch size, device count and compilation differ."""
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert expected.std() > 10


def one_hot(classes):
    return np.eye(10, dtype=np.float32)[classes]


def test_other_nfe_than_trained_prints_a_note(made):
    output = made.output("two calls")
    assert (
        "note: the generator was trained for one call at sigma 1.25; samples from 2 calls" in output
    )
    assert "2 calls at sigma 1.25, 0.3846, fresh noise; NFE: 2" in output


def test_samples_the_newest_generators_ema(made):
    pictures, labels = made.arrays("all")
    np.testing.assert_array_equal(labels, np.arange(12) % 10)
    assert_same(pictures, one_call(made.digits, made.digits_generator, one_hot(labels)))
    output = made.output("all")
    digest = checkpoint.params_sha256(made.digits_generator)
    assert f"generator of run, EMA at step 7, sha256 {digest}" in output
    assert "one call at sigma 1.25; NFE: 1" in output
    assert "conditions: 10 classes, cycled; seed 0" in output
    assert re.search(r"images: 12 of 8 x 8; \S+ s each", output)
    assert "written to all.npz" in output


def test_samples_the_best_generator_into_the_home_directory(made):
    pictures, labels = made.arrays("best", "home")
    assert_same(pictures, one_call(made.digits, made.best, one_hot(labels)))
    assert "EMA at step 5, the best by pixels/recall (0.5), sha256" in made.output("best")


def test_classes_are_cycled_and_saved_as_labels(made):
    pictures, labels = made.arrays("some")
    np.testing.assert_array_equal(labels, [3, 7, 3, 7, 3, 7, 3])
    expected = one_call(made.digits, made.digits_generator, one_hot(labels), seed=1)
    assert_same(pictures, expected)


def test_a_grid_of_a_teacher_called_once(made):
    assert "one call at sigma 1.25" in made.output("grid")
    grid = np.asarray(Image.open(made.folder / "grid.png"))
    assert grid.shape == (3 * 72, 3 * 72)  # 64 pixels and a frame
    expected = one_call(made.digits, made.digits.params, one_hot(np.arange(7)))
    assert_same(tiles(grid, 3, 3)[:7, 4:-4:8, 4:-4:8], expected[..., 0])


def tiles(grid, rows, columns):
    split = grid.reshape(rows, 72, columns, 72, *grid.shape[2:]).swapaxes(1, 2)
    return split.reshape(rows * columns, 72, 72, *grid.shape[2:])


def test_samples_a_teacher_with_its_sampler(made):
    guided = dataclasses.replace(made.digits.config.teacher, guidance=2.0)
    options = dataclasses.replace(made.digits.config, teacher=guided)
    model = dataclasses.replace(made.digits, config=options)
    sampler = samplers.many_steps(model, 2)
    (expected,) = report.drawing(model, np.arange(3), 0).draw(sampler.function, model.params)
    assert_same(made.arrays("guided")[0], expected)
    assert "teacher, Heun, 2 steps, guidance 2.0; NFE: 6" in made.output("guided")
    digest = made.digits.provenance["sha256"]
    assert f"teacher of run, made, sha256 {digest}" in made.output("guided")


def test_writes_samples_of_a_published_generator_to_a_folder(made):
    ported = port.port(str(made.folder / "net.pkl"), say=lambda text: None)
    assert f"net.pkl, sha256 {ported.provenance['file_sha256']}" in made.output("folder")
    assert "one call at sigma 1.25" in made.output("folder")
    files = sorted((made.folder / "new" / "folder").glob("*/*"))
    assert [file.name for file in files] == [f"{n:06d}.png" for n in range(5)]
    pictures = np.stack([np.asarray(Image.open(file)) for file in files])
    _, params = build.denoiser(made.digits.config, ported.weights)
    expected = one_call(made.digits, params, one_hot(np.arange(5)))
    assert_same(pictures, expected[..., 0])
    assert not list(made.folder.glob("**/probe*"))


def test_prompts_are_cycled_over_a_captioned_runs_samples(made):
    pictures, labels = made.arrays("prompts")
    assert labels is None
    assert "conditions: 3 prompts, cycled, 1 of them truncated to 12 tokens" in made.output(
        "prompts"
    )
    held_out = own_prompts(made).held_out  # contains the first and the last prompt
    cond = jax.tree.map(lambda leaf: np.stack([leaf[7, 4], leaf[8, 3]] * 4), held_out)
    expected = one_call(made.captioned, made.captioned_generator, cond)
    assert_same(pictures[[0, 6]], expected[[0, 6]])
    assert (
        np.abs(pictures[3].astype(int) - expected[3]).max() > 1
    )  # the "8", at the first sample's noise
    cond = jax.tree.map(lambda leaf: leaf[::-1], cond)
    expected = one_call(made.captioned, made.captioned_generator, cond)
    assert_same(pictures[3:4], expected[3:4])


def own_prompts(made):
    return captions.prepare(made.captioned.config.text, epath.Path(made.folder / "captioned"))


def test_a_captioned_run_brings_its_prompts(made):
    pictures, labels = made.arrays("held_out")
    np.testing.assert_array_equal(labels, [4, 8, 4])
    cond = own_prompts(made).conditions(labels)
    assert_same(pictures, one_call(made.captioned, made.captioned_generator, cond))


def test_pixart_with_its_encoder_and_autoencoder(made):
    output = made.output("latents")
    assert "images: 8 of 64 x 64" in output
    grid = np.asarray(Image.open(made.folder / "samples.png"))
    assert grid.shape == (4 * 72, 2 * 72, 3)  # 64 pixels from 8 latents; a prompt per column
    pictures = tiles(grid, 4, 2)[:, 4:-4, 4:-4]
    assert len(np.unique(pictures, axis=0)) == 8
    assert pictures.std() > 10


@pytest.mark.parametrize("line", list(MISTAKES))
def test_user_errors_print_one_message(made, line):
    message, output = made.done[line]
    assert MISTAKES[line] in message  # SystemExit with a text has exit status 1
    assert message.startswith("simjax: ")
    assert len(message.splitlines()) == 1
    assert "written to" not in output
