"""Generator losses by name: (x0, d_teacher, d_fake, weight, *, options) -> (b,).

To add one, write a function in a new file and add it to LOSSES. The keyword-only arguments are its
options, with defaults; they become fields of config.Loss (config/options.py).
"""

from collections.abc import Callable

from simjax.losses import diff_instruct, fgm, real_images, sid, sim
from simjax.typing import PerExample

LOSSES: dict[str, Callable[..., PerExample]] = {
    "sim": sim.generator_loss,
    "sid": sid.generator_loss,
    "diff_instruct": diff_instruct.generator_loss,
    "fgm": fgm.generator_loss,
    "real_uid": real_images.generator_loss,
}
# Fake-score losses of the methods that also train the fake score on real images x':
# (x0, D of noisy x0, x', D of noisy x', weight, *, options) -> (b,).
WITH_REAL_IMAGES: dict[str, Callable[..., PerExample]] = {
    "real_uid": real_images.fake_score_loss,
}
