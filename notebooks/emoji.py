"""Renders a captioned emoji data set, or a strip of samples.

python notebooks/emoji.py --out=data/emoji.zip              # data set for configs/emoji.py
python notebooks/emoji.py --font=FILE --out=data/emoji.zip  # use a font that is not installed
python notebooks/emoji.py --strip RUN_ONE RUN_FOUR --out=notebooks/images/emoji.png

The zip is in EDM's format: 32 x 32 RGB images on white, one class per emoji of configs/emoji.py;
dataset.json also holds the captions, which are the emoji's Unicode names. A demonstration, not a
benchmark: the images of an emoji are small shifts and scalings of one glyph, and all of them are
training data of the teacher (no held-out images).
"""

import argparse
import io
import json
import runpy
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

import simjax
from simjax import config as c

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
CONFIG = runpy.run_path(str(HERE.parent / "configs" / "emoji.py"))
FONT = "NotoColorEmoji"  # 136 x 128 bitmaps in a single size
FONT_SIZE, GLYPH = 109, (136, 128)
NO_CHARACTER = "\U0010ffff"  # in no font
INSTALL = "apt install fonts-noto-color-emoji on Debian and Ubuntu, or --font=FILE"

# All our choice.
SIDE = 32  # image side, pixels
SIDES = range(26, 31)  # emoji side, pixels
SHIFT = 1  # maximum offset from the centre, pixels
EACH = 16  # images per emoji
SEED = 0  # random sizes and shifts
SHOWN = "🦊🐸🐧🍓🍕🌵🚀🎈"  # in the strip, followed by the held-out emoji
COLUMN = 14  # characters per line of a prompt

Draw = Callable[[str], Image.Image]  # character -> RGBA picture


def find_font(given: Path | None) -> Path:
    """Returns the given font file, or finds NotoColorEmoji among installed fonts."""
    if given is not None:
        if not given.is_file():
            raise SystemExit(f"--font={given}: no such file; expected {FONT}.ttf ({INSTALL}).")
        return given
    installed = [Path(path) for path in font_manager.findSystemFonts()]
    found = sorted(path for path in installed if path.stem == FONT)
    if not found:
        raise SystemExit(f"No {FONT}.ttf among the {len(installed)} installed fonts: {INSTALL}.")
    return found[0]


def drawing(font: Path) -> Draw:
    """Returns a function that draws characters with a colour font."""
    try:
        loaded = ImageFont.truetype(str(font), FONT_SIZE)
    except OSError as error:
        raise SystemExit(
            f"{font}: {error}; expected {FONT}.ttf with bitmaps of size {FONT_SIZE} ({INSTALL})."
        ) from error

    def drawn(character: str) -> Image.Image:
        picture = Image.new("RGBA", GLYPH)
        ImageDraw.Draw(picture).text((0, 0), character, font=loaded, embedded_color=True)
        return picture

    missing = drawn(NO_CHARACTER)

    def draw(character: str) -> Image.Image:
        picture = drawn(character)
        if picture == missing:
            raise SystemExit(
                f"{font} lacks {character} (U+{ord(character):X}); expected {FONT}.ttf of 2020 or "
                f"later ({INSTALL})."
            )
        return picture

    return draw


def on_white(picture: Image.Image) -> Image.Image:
    """Centres the picture on a white square, RGB."""
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    corner = ((side - picture.width) // 2, (side - picture.height) // 2)
    square.alpha_composite(picture.convert("RGBA"), corner)
    return square.convert("RGB")


def placed(square: Image.Image, side: int, shift: tuple[int, int]) -> Image.Image:
    """Resizes the square to `side`; pastes it on a white image."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    left, top = ((SIDE - side) // 2 + by for by in shift)
    image.paste(square.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    return image


def make_zip(out: Path, characters: str, captions: tuple[str, ...], draw: Draw) -> np.ndarray:
    """Writes EACH images per character; returns all, uint8 (n, h, w, 3).

    Files sort by number, then by class, so that classes alternate.
    """
    rng = np.random.default_rng(SEED)
    squares = [on_white(draw(character)) for character in characters]
    images, labels = [], []
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(EACH):
            for label, square in enumerate(squares):
                shift = tuple(rng.integers(-SHIFT, SHIFT + 1, 2).tolist())
                image = placed(square, int(rng.choice(SIDES)), shift)
                name, content = f"{number:05d}/img{label:08d}.png", io.BytesIO()
                image.save(content, format="png")
                archive.writestr(
                    zipfile.ZipInfo(name), content.getvalue()
                )  # no timestamp: reproducible zip
                images.append(np.asarray(image))
                labels.append((name, label))
        about = json.dumps({"labels": labels, "captions": captions})
        archive.writestr(zipfile.ZipInfo("dataset.json"), about)
    return np.stack(images)


def strip(one: str, four: str, out: Path) -> None:
    """Draws samples of one teacher and two generators for the same prompts."""
    names = dict(zip(CONFIG["EMOJI"], CONFIG["WORDS"], strict=True)) | CONFIG["LEFT_OUT"]
    teacher = simjax.load(one, network="teacher")
    template = teacher.config.text.held_out[0]
    shown = [*SHOWN, *CONFIG["LEFT_OUT"]]
    given = {"count": len(shown), "prompts": [template.format(names[each]) for each in shown]}
    steps = teacher.config.evaluation.teacher_steps[0]
    rows = {"teacher": simjax.draw(teacher, steps=steps, **given)}
    for run in (four, one):
        generator = simjax.load(run)
        calls = len(c.generator_levels(generator.config.generator))
        rows["one step" if calls == 1 else f"{calls} steps"] = simjax.draw(generator, **given)
    figure, axes = plt.subplots(len(rows), len(shown), figsize=(0.8 * len(shown), 3.0))
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, image in zip(row, images, strict=True):
            axis.imshow((image.clip(-1, 1) + 1) / 2, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, prompt in zip(axes[0], given["prompts"], strict=True):
        axis.set_title(textwrap.fill(prompt, COLUMN), fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=120)


def main() -> None:
    """Parses flags; writes the zip or the strip."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="zip file, or PNG of the strip")
    parser.add_argument("--font", type=Path, help=f"default: the installed {FONT}.ttf")
    parser.add_argument("--strip", nargs=2, metavar=("RUN_ONE", "RUN_FOUR"), help="run directories")
    given = parser.parse_args()
    if given.strip:
        strip(*given.strip, given.out)
    else:
        draw = drawing(find_font(given.font))
        images = make_zip(given.out, CONFIG["EMOJI"], CONFIG["WORDS"], draw) / 127.5 - 1
        print(
            f"{len(images)} images of {len(CONFIG['EMOJI'])} emoji; mean {images.mean():.2f}, "
            f"deviation {images.std():.2f} (teacher.sigma_data)"
        )
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
