"""Compiles a distillation while its teacher is trained or downloaded.

Called from runs/distill.py.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import jax

from simjax import config as c
from simjax.data import Dataset
from simjax.models import build, port
from simjax.models.model import Model
from simjax.runs import real, setup
from simjax.runtime import settings
from simjax.train.compile import Training


@contextlib.contextmanager
def distillation(
    config: c.Config, images: Dataset | None = None
) -> Iterator[Callable[[Model], Training]]:
    """Yields `setup.distillation` of a teacher, whose call is compiled beside the block.

    The block makes the teacher. Several processes compile nothing here: they would wait for the
    slowest; nor does a GPU that trains the teacher meanwhile: its compiler times kernels.

    Args:
      images: the real ones that the call takes.
    """
    made: list[tuple[c.Config, Training]] = []
    thread = threading.Thread(target=_compile, args=(config, images, made))
    is_free = bool(config.teacher.source) or jax.default_backend() != "gpu"
    if jax.process_count() == 1 and is_free:
        thread.start()

    def of(teacher: Model) -> Training:
        if thread.is_alive():
            thread.join()
        planned, training = made[0] if made else (None, None)
        if planned == teacher.config and training is not None and not teacher.constants:
            return training
        return setup.distillation(teacher.config, teacher.denoise, teacher.mesh)

    yield of  # after an error, Python waits for the thread when it exits: XLA cannot be stopped


@settings.independent
def _compile(
    config: c.Config, images: Dataset | None, made: list[tuple[c.Config, Training]]
) -> None:
    with contextlib.suppress(Exception):  # the run meets it too, and says so
        config = port.plan(config)
        denoise, params = build.blank(config)
        if build.count(params) < build.count(build.weights_like(config)):
            return  # fixed frequencies are part of the program, and not known yet
        training = setup.distillation(config, denoise, build.mesh(config))
        like = None if images is None else real.like(config, images, training.mesh)
        training.call.lower(*setup.arguments_like(config, training, params, like)).compile()
        made.append((config, training))
