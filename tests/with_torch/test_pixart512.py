"""configs/pixart512.py from prompts to report, with small weights in the public formats."""

import json
import subprocess
import sys

import diffusers
import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image

from simjax import config
from simjax.models import build
from simjax.porting.maps import pixart, rules
from tests.helpers import subprocesses

PROMPTS = ["a red cube", "the blue ball on a table", "a cube", "on the table a red ball"]
LENGTH = 6
NETWORK = config.PixArt(  # the number of heads of width 384 is in the porting table
    resolution=8, width=384, depth=2, heads=6, caption_channels=32, caption_length=LENGTH
)
RUN = {
    "batch": 8,
    "accumulate": 2,
    "steps": 2,
    "sample_every": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "grid": 2,
    "evaluation.batch": 4,
    "evaluation.teacher_steps": "(2,)",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Text encoder and autoencoder folders of Hugging Face, and PixArt-alpha's .pth."""
    folder = tmp_path_factory.mktemp("public")
    torch.manual_seed(0)
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    write_text_encoder(folder / "t5")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=4,
    )
    vae.save_pretrained(folder / "vae")
    options = config.complete(config.Config(), NETWORK, "ddpm_linear", 1.0)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda a: 0.05 * rng.standard_normal(a.shape, np.float32), build.weights_like(options)
    )
    tensors = rules.export(pixart.ORIGINAL, weights, NETWORK.depth)
    tensors["pos_embed"] = pixart.grid_embedding(NETWORK.resolution // 2, NETWORK.width)[None]
    state = {name: torch.tensor(np.array(tensor)) for name, tensor in tensors.items()}
    torch.save({"state_dict": state, "epoch": 1}, folder / "pixart.pth")
    return folder


def write_text_encoder(folder):
    words = ["<pad>", "</s>", "<unk>", *sorted({w for prompt in PROMPTS for w in prompt.split()})]
    sizes = {"vocab_size": len(words), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    settings = transformers.T5Config(
        **sizes, num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    transformers.T5EncoderModel(settings).save_pretrained(folder)
    library = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    library.save(str(folder / "tokenizer.json"))


def run(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env=subprocesses.environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_from_prompts_to_report(files, tmp_path):
    out = run(
        "simjax",
        "encode-prompts",
        f"--prompts={files / 'prompts.txt'}",
        f"--encoder={files / 't5'}",
        f"--out={tmp_path / 'cache'}",
        f"--length={LENGTH}",
    )
    assert "prompts encoded: 4" in out
    out = run(
        "simjax.main",
        "--config=configs/pixart512.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.teacher.source={files / 'pixart.pth'}",
        f"--config.text.cache={tmp_path / 'cache'}",
        f"--config.autoencoder={files / 'vae'}",
        *(f"--config.{name}={value}" for name, value in RUN.items()),
    )
    assert "sim 2/2" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["fake_score/loss"] for line in lines if "fake_score/loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    with Image.open(tmp_path / "run" / "samples" / "generator_00000002.png") as picture:
        assert picture.size[0] >= 2 * 64  # two decoded images per row
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    assert {row["name"] for row in rows} >= {"generator, sim", "teacher, DPM-Solver++"}


def test_a_missing_caption_cache_raises_at_start(files, tmp_path):
    command = [sys.executable, "-m", "simjax.main", "--config=configs/pixart512.py"]
    source = f"--config.teacher.source={files / 'pixart.pth'}"
    done = subprocess.run(
        [*command, source, f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        env=subprocesses.environment(),
    )
    assert done.returncode == 1
    assert "PixArt reads captions, but there are none: make a cache with" in done.stderr
