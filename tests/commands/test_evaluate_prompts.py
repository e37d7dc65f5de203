"""simjax evaluate --prompts: CLIP score, aesthetic score and errors."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from simjax.evaluation import images
from simjax.evaluation.clip import aesthetic, score
from simjax.runtime import checkpoint
from tests.helpers import checkpoints, clip_files, files, subprocesses
from tests.helpers.configs import TEACHER, load
from tests.helpers.runs import make_run

PROMPTS = ["Lost", "wet 1!", "'s low " * 5]  # the last one is truncated
PICTURES = np.random.default_rng(1).integers(0, 256, (6, 9, 12, 3)).astype(np.uint8)
CLIP = "--metrics=clip_score,,--clip=clip"
BOTH = "--metrics=clip_score,aesthetic,,--clip=clip,,--aesthetic_head=head.pth"
HEAD = "--metrics=aesthetic,,--clip=clip,,--aesthetic_head=head.pth"
LINES = {
    "both": f"--source=drawn,,{BOTH},,--prompts=prompts.txt,,--batch=4,,--out=both.json",
    "npz": f"--source=drawn.npz,,{CLIP},,--prompts=prompts.json,,--out=npz.json",
    "zip": f"--source=zip:drawn.zip,,{CLIP},,--prompts=prompts.txt,,--out=zip.json",
    "swapped": f"--source=drawn,,{CLIP},,--prompts=swapped.txt,,--out=swapped.json",
    "aesthetic": f"--source=drawn,,{HEAD},,--out=aesthetic.json",
    "beside": "--source=drawn,,--metrics=frechet,clip_score,,--clip=clip,,--prompts=prompts.txt,,"
    "--reference=other,,--features=pixels,,--batch=4,,--out=beside.json",
    "alone": "--source=drawn,,--metrics=frechet,,--reference=other,,--features=pixels,,"
    "--out=alone.json",
}
IMAGES, END = "--source=drawn,,", ",,--out=x.json"
MISTAKES = {
    # Missing flags.
    f"{IMAGES}--metrics=clip_score{END}": "needs --prompts=FILE, --clip=FOLDER.",
    f"{IMAGES}--metrics=aesthetic{END}": "needs --clip=FOLDER, --aesthetic_head=FILE.",
    f"{IMAGES}{BOTH}{END}": "--metrics=clip_score,aesthetic needs --prompts=FILE.",
    f"{IMAGES}{CLIP},,--prompts={END}": "--metrics=clip_score needs --prompts=FILE.",
    f"{IMAGES}--metrics=clip{END}": "'clip' is not known; known: aesthetic, class_agreement, ",
    f"{IMAGES}--metrics=frechet,aesthetic,,--clip=clip,,--aesthetic_head=head.pth{END}": "frechet "
    "of images need --reference=... (or --data=...) to compare with",
    # Files.
    f"{IMAGES}--metrics=clip_score,,--clip=none,,--prompts=prompts.txt{END}": "none is not a"
    " folder",
    f"{IMAGES}--metrics=clip_score,,--clip=drawn,,--prompts=prompts.txt{END}": "drawn: holds ",
    f"{IMAGES}--metrics=clip_score,,--clip=wordless,,--prompts=prompts.txt{END}": "no tokenizer",
    f"{IMAGES}--metrics=clip_score,,--clip=cut,,--prompts=prompts.txt{END}": "cut/model.safetens",
    f"{IMAGES}--metrics=aesthetic,,--clip=clip,,--aesthetic_head=none.pth{END}": "none.pth: No suc",
    f"{IMAGES}--metrics=aesthetic,,--clip=clip,,--aesthetic_head=drawn.npz{END}": "drawn.npz: ",
    f"{IMAGES}--metrics=aesthetic,,--clip=small,,--aesthetic_head=head.pth{END}": "small: embedding"
    "s have 12 channels, but the aesthetic head needs 768",
    f"{IMAGES}{CLIP},,--prompts=none.txt{END}": "none.txt",
    f"{IMAGES}{CLIP},,--prompts=empty.txt{END}": "empty.txt has no prompts",
    f"{IMAGES}{CLIP},,--prompts=four.txt{END}": "drawn has 6 images, four.txt 4 prompts; expected ",
    f"{IMAGES}{CLIP},,--prompts=many.txt{END}": "drawn has 6 images, many.txt 12 prompts",
    # Flags that have no effect.
    f"{IMAGES}--metrics=frechet,,--reference=other,,--clip=clip{END}": "--clip is for clip_score "
    "or aesthetic. Add that metric, or drop",
    f"{IMAGES}{HEAD},,--prompts=prompts.txt{END}": "--prompts is for clip_score.",
    f"{IMAGES}{CLIP},,--prompts=prompts.txt,,--aesthetic_head=head.pth{END}": "head is for aesthet",
    f"{IMAGES}--reference=other,,--prompts=prompts.txt{END}": "--prompts is for clip_score.",
    f"{IMAGES}{HEAD},,--reference=other,,--limit=3{END}": "--reference, --limit: no effect, "
    "--metrics=aesthetic needs no reference",
    f"{IMAGES}{HEAD},,--data=digits,,--features=pixels{END}": "--data, --features: no effect",
    f"{IMAGES}{HEAD},,--seed=1{END}": "--seed: no effect",
    # Wrong sources.
    f"--source=run,,{CLIP},,--prompts=prompts.txt{END}": "the source is a run: --prompts is for a "
    "data set or images in files; --clip is",
    f"--source=run,,--metrics=aesthetic{END}": "the source is a run: --metrics=aesthetic is for a "
    "data set or images in files. Run simjax sample",
    f"--source=net.pkl,,--metrics=clip_score{END}": "the source is a network called once: --me",
}


class Made(NamedTuple):
    """Folder with images, prompts and CLIP, and the result of each command line."""

    folder: Path
    done: dict[str, list]

    def result(self, name):
        subprocesses.output(self.done[LINES[name]])
        return json.loads((self.folder / f"{name}.json").read_text())

    def metrics(self, name):
        return self.result(name)["rows"][0]["metrics"]


def _write_prompts(folder):
    for name, prompts in {
        "prompts": PROMPTS,
        "swapped": [PROMPTS[1], PROMPTS[0], PROMPTS[2]],
        "four": [*PROMPTS, "low"],
        "many": PROMPTS * 4,
        "empty": [],
    }.items():
        (folder / f"{name}.txt").write_text("\n\n".join(prompts))  # empty lines are skipped
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))


def _write_clip(folder):
    clip_files.write_folder(folder / "clip", projection=768)
    tensors = clip_files.foreign(projection=768)
    tensors["visual_projection.weight"] *= -1  # otherwise every cosine is negative and the score 0
    files.write_safetensors(folder / "clip" / "model.safetensors", tensors)
    for name in ("small", "wordless", "cut"):
        clip_files.write_folder(folder / name)
    (folder / "wordless" / "vocab.json").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    files.write_torch_zip(folder / "head.pth", clip_files.aesthetic_head())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate_prompts")
    _write_prompts(folder)
    _write_clip(folder)
    images.write_folder(folder / "drawn", [PICTURES])
    images.write_folder(folder / "other", [PICTURES[::-1] // 2])
    images.write_npz(folder / "drawn.npz", PICTURES)
    with zipfile.ZipFile(folder / "drawn.zip", "w") as archive:
        for path in sorted((folder / "drawn").rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(folder / "drawn"))
    checkpoints.write(folder / "net.pkl", TEACHER)
    make_run(folder / "run", load("digits"), TEACHER)
    return Made(folder, subprocesses.several("evaluate", [*LINES.values(), *MISTAKES], folder))


@pytest.fixture(scope="module")
def direct(made):
    """Scores of the same images and prompts, computed by evaluation/clip directly."""
    head = aesthetic.load(made.folder / "head.pth")
    clip = score.load_clip(made.folder / "clip")
    return score.scores(PICTURES, PROMPTS * 2, clip, head)


def test_image_i_is_scored_with_prompt_i_modulo_n(made, direct):
    (row,) = made.result("both")["rows"]
    assert (row["name"], row["samples"]) == ("drawn", 6)
    assert row["metrics"] == {
        "clip/clip_score": pytest.approx(direct["clip_score_mean"], rel=1e-4),
        "clip/aesthetic": pytest.approx(direct["aesthetic_mean"], rel=1e-4),
    }
    assert min(direct["clip_score"]) > 0  # none is clipped at 0


def test_the_order_of_prompts_matters(made):
    found, swapped = (made.metrics(name)["clip/clip_score"] for name in ("both", "swapped"))
    assert abs(swapped - found) > 0.01


@pytest.mark.parametrize("name", ["npz", "zip"])
def test_npz_and_zip_give_the_same_score_as_the_folder(made, direct, name):
    assert made.metrics(name) == {
        "clip/clip_score": pytest.approx(direct["clip_score_mean"], rel=1e-4)
    }


def test_the_aesthetic_score_needs_no_prompts(made, direct):
    assert made.metrics("aesthetic") == {
        "clip/aesthetic": pytest.approx(direct["aesthetic_mean"], rel=1e-4)
    }
    assert set(made.result("aesthetic")["protocol"]["clip"]) == {"extractor", "aesthetic"}


def test_scores_and_reference_metrics_are_reported_together(made, direct):
    result, alone = made.result("beside"), made.metrics("alone")
    assert set(result["protocol"]) == {"pixels", "clip"}
    metrics = result["rows"][0]["metrics"]
    assert metrics["pixels/frechet"] == pytest.approx(alone["pixels/frechet"], rel=1e-6)
    assert metrics["clip/clip_score"] == pytest.approx(direct["clip_score_mean"], rel=1e-4)
    assert [row["name"] for row in result["rows"][1:]] == [
        "real: half against half",
        "real: drawn with replacement",
    ]


def test_the_protocol_records_network_weight_and_prompts(made):
    head = checkpoint.params_sha256(aesthetic.load(made.folder / "head.pth"))
    network = score.load_clip(made.folder / "clip").sha256
    found = made.result("both")["protocol"]["clip"]
    assert found["extractor"] == {"features": "clip", "network": "clip", "weights_sha256": network}
    assert found["aesthetic"] == {"head": "head.pth", "weights_sha256": head}
    assert found["clip_score"] == {
        "weight": 100.0,
        "prompts": 3,
        "truncated": 1,
        "prompts_name": "prompts.txt",
        "prompts_sha256": hashlib.sha256(
            "".join(f"{prompt.strip()}\n" for prompt in PROMPTS).encode()
        ).hexdigest(),
    }
    _, output = made.done[LINES["both"]]
    assert f"clip: clip (sha256 {network[:12]}); clip_score = 100 max(cos, 0); 3 prompts" in output
    assert "1 truncated; aesthetic head: head.pth" in output


@pytest.mark.parametrize("line", list(MISTAKES))
def test_user_errors_print_one_message(made, line):
    message, output = made.done[line]
    assert MISTAKES[line] in str(message)  # SystemExit with a text has exit status 1
    assert message.startswith("simjax: ")
    assert len(message.splitlines()) == 1
    assert "written to" not in output and "clip_score" not in output
    assert not (made.folder / "x.json").exists() and not list(made.folder.rglob("*.tmp"))
