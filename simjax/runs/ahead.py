"""Compiles the distillation step while the teacher is trained or downloaded.

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
    """Yields `setup.distillation`, compiled in a thread while the block runs.

    The block makes the teacher. Nothing is compiled ahead with several processes (all would wait
    for the slowest), nor on a GPU that is training the teacher (XLA's autotuner times kernels
    there).

    Args:
      images: real images that the step reads, if any.
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

    yield of  # after an error, Python waits for the thread at exit: compilation cannot be cancelled


@settings.independent
def _compile(
    config: c.Config, images: Dataset | None, made: list[tuple[c.Config, Training]]
) -> None:
    with contextlib.suppress(Exception):  # the run hits the same error and reports it
        config = port.plan(config)
        denoise, params = build.blank(config)
        if build.count(params) < build.count(build.weights_like(config)):
            return  # fixed frequencies are compiled into the program, but unknown until ported
        training = setup.distillation(config, denoise, build.mesh(config))
        like = None if images is None else real.like(config, images, training.mesh)
        training.call.lower(*setup.arguments_like(config, training, params, like)).compile()
        made.append((config, training))
