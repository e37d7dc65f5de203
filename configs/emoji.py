"""SIM, text to image in colour: a small PixArt-alpha that draws 32 x 32 emoji by their names.

python notebooks/emoji.py --out=data/emoji.zip  # the images, from a colour font on the machine
python -m simjax.main --config=configs/emoji.py
mkdir -p runs/emoji_four && cp -r runs/emoji/teacher runs/emoji_four/  # one teacher for both
python -m simjax.main --config=configs/emoji.py:four_steps --workdir=runs/emoji_four
python notebooks/emoji.py --strip runs/emoji runs/emoji_four --out=notebooks/images/emoji.png

A demonstration of the text path in colour, not a benchmark: 121 emoji, each in 16 sizes and
places, all of them trained on. Not measured yet. Every value below is our choice, untuned; what is
not here keeps the published setting of simjax.config.
"""

import unicodedata

from simjax import config as c

# A class each, in this order: one code point, drawn in colour, no letters or digits in it.
EMOJI = (
    "🐵🐶🦊🐱🦁🐯🐮🐷🐭🐹🐰🐻🐨🐼🐔🐧🐤🦉🐸🐢🐳🐟🐙🦋🐝🐞🦀"
    "🌸🌻🌷🌲🌴🌵🍀🍁🍄🍇🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥝🍅🥑🍆🥕🌽🍞🧀🍔🍟🍕🍩🎂🍦"
    "🌈🔥💧🌙🌟🌍😀😂😎😍😢😡😱🤖👻💀💩🚂🚌🚗🚒🚀🚢🎈🎁🎄⚽🏀🏈🎱👑💎👕💡🔑📷💻"
    "💙💚💛🧡🖤🤎🔴🟠🟡🔵🟣🟤🟥🟧🟨🟩🟦🟫📕📗📘📙"
)
WORDS = tuple(unicodedata.name(character).lower() for character in EMOJI)
# Never trained on: colours and shapes that are known from others.
LEFT_OUT = {character: unicodedata.name(character).lower() for character in "💜🟢🟪"}


def get_config(generator: str = "one_step") -> c.Config:
    return c.pick(generator, one_step=_one_step, four_steps=_four_steps)


def _four_steps() -> c.Config:
    config = _one_step()
    config.generator.steps = 4
    config.steps = 800  # a step trains one of the calls
    return config


def _one_step() -> c.Config:
    return c.Config(
        steps=700,
        batch=64,
        scan_blocks=False,  # six small blocks compile quickly, and run faster
        evaluation=c.Evaluation(
            features=("classifier",),  # whose classes are the emoji
            samples=2 * len(WORDS),
            teacher_steps=(18,),
            batch=100,  # as many as a picture has: one program draws both
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
            patch=4,  # 64 tokens; patches of 2 would cost four times as much
            width=128,
            depth=6,
            heads=4,
            caption_channels=128,
            caption_length=16,
        ),
        teacher=c.Teacher(
            sigma_data=0.5,  # the zip's deviation is 0.53
            steps=5000,
            batch=64,
            # Above EDM's (-1.2, 1.2): white and an emoji's place are decided at high levels.
            sigma=c.Sigma(mean=-0.4, std=1.4),
            guidance=1.5,
            drop_condition=0.1,  # PixArt-alpha
            optim=c.Optim(lr=3e-3, beta1=0.9, beta2=0.99, warmup_steps=200, final_lr=0.02),
            ema=c.Ema(half_life_kimg=8.85, rampup_ratio=0.0),  # beta 0.995
        ),
        generator=c.Generator(
            sigma_init=5.0,  # as for the teacher's law
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
