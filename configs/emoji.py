"""SIM text to image on 32 x 32 colour emoji, small PixArt-alpha.

python notebooks/emoji.py --out=data/emoji.zip  # images, from an installed colour font
python -m simjax.main --config=configs/emoji.py
mkdir -p runs/emoji_four && cp -r runs/emoji/teacher runs/emoji_four/  # reuse the teacher
python -m simjax.main --config=configs/emoji.py:four_steps --workdir=runs/emoji_four
python notebooks/emoji.py --strip runs/emoji runs/emoji_four --out=notebooks/images/emoji.png

A demonstration of text conditioning, not a benchmark: prompts are the names of 121 emoji, each in
16 sizes and positions, all in the training set. Not measured yet. Every value below is our
choice, untuned; other fields keep their published defaults.
"""

import unicodedata

from simjax import config as c

# One class each, in this order: single code points, drawn in colour, without letters or digits.
EMOJI = (
    "🐵🐶🦊🐱🦁🐯🐮🐷🐭🐹🐰🐻🐨🐼🐔🐧🐤🦉🐸🐢🐳🐟🐙🦋🐝🐞🦀"
    "🌸🌻🌷🌲🌴🌵🍀🍁🍄🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥝🍅🥑🍆🥕🌽🍞🧀🍔🍟🍕🍩🎂🍦"
    "🌈🔥💧🌙🌟🌍😀😂😎😍😢😡😱🤖👻💀💩🚂🚌🚗🚒🚀🚢🎈🎁🎄⚽🏀🏈🎱👑💎👕💡🔑📷💻"
    "💙💚💛🧡🖤🤎🔴🟠🟡🔵🟣🟤🟥🟧🟨🟩🟦🟫📕📗📘📙"
)
WORDS = tuple(unicodedata.name(character).lower() for character in EMOJI)
# Not in the training set: their colours and shapes occur in other emoji.
LEFT_OUT = {character: unicodedata.name(character).lower() for character in "💜🟢🟪"}


def get_config(generator: str = "one_step") -> c.Config:
    return c.pick(generator, one_step=_one_step, four_steps=_four_steps)


def _four_steps() -> c.Config:
    config = _one_step()
    config.generator.steps = 4
    config.steps = 800  # each training step trains only one of the generator's calls
    return config


def _one_step() -> c.Config:
    return c.Config(
        steps=700,
        batch=64,
        scan_blocks=False,  # six small blocks compile quickly and run faster unrolled
        evaluation=c.Evaluation(
            features=("classifier",),  # classes are the emoji
            samples=2 * len(WORDS),
            teacher_steps=(18,),
            batch=100,  # as in the sample pictures: one compiled sampler
        ),
        log_every=20,
        sample_every=100,
        checkpoint_every=100,
        data=c.Data(source="zip:data/emoji.zip"),
        text=c.Text(
            t5=c.T5(vocabulary=512, width=128, depth=2, heads=4, head_width=32, hidden=256),
            length=16,
            words=WORDS,
            templates=("{}", "an emoji of a {}", "a picture of a {}", "{} on white"),
            held_out=("a tiny {}", "a drawing of a {}"),
        ),
        network=c.PixArt(
            resolution=32,
            image_channels=3,
            patch=4,  # 64 tokens; patch=2 would cost four times as much
            width=128,
            depth=6,
            heads=4,
            caption_channels=128,
            caption_length=16,
        ),
        teacher=c.Teacher(
            sigma_data=0.5,  # standard deviation of the images: 0.53
            steps=5000,
            batch=64,
            # Higher than EDM's (-1.2, 1.2): white background and position are set at high noise.
            sigma=c.Sigma(mean=-0.4, std=1.4),
            guidance=1.5,
            drop_condition=0.1,  # PixArt-alpha
            optim=c.Optim(lr=3e-3, beta1=0.9, beta2=0.99, warmup_steps=200, final_lr=0.02),
            ema=c.Ema(half_life_kimg=8.85, rampup_ratio=0.0),  # beta 0.995
        ),
        generator=c.Generator(
            sigma_init=5.0,  # suits the teacher's noise levels
            sigma=c.Sigma(law="karras", t_max=0.6),  # up to sigma 5.8
            optim=c.Optim(lr=4e-4, warmup_steps=20, final_lr=0.1),
            ema=c.Ema(half_life_kimg=4.41, rampup_ratio=0.0),  # beta 0.99
        ),
        fake_score=c.FakeScore(
            sigma=c.Sigma(mean=-0.4, std=1.4),  # the teacher's
            optim=c.Optim(lr=8e-4, warmup_steps=20, final_lr=0.1),
        ),
        loss=c.Loss(distance="pseudo_huber", c=0.01),
    )
