"""The generator's losses by name: (x0, d_teacher, d_fake, weight, *, options) -> one an example.

A new one is a function in a file of its own and a line here. What comes after `*` are its options,
with their defaults: they become fields of config.Loss (config/options.py).
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
# Of the fake score, of the methods whose fake score learns from real images beside generated ones:
# (x0, D of x0, x', D of x', weight, *, options) -> one an example.
WITH_REAL_IMAGES: dict[str, Callable[..., PerExample]] = {
    "real_uid": real_images.fake_score_loss,
}
