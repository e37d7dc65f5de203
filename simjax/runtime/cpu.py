"""What only CPUs need: convolution in the forms that they run fast, XLA's options, kept memory.

Convolution has stride 1; doubling and halving of images go with it.
"""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from simjax.typing import Array, Float, Images

Kernel = Float[Array, "kh kw features_in features"]
Padding = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
Precision = jax.lax.PrecisionLike

# What XLA leaves to YNNPACK on CPUs: sums alone. Given the convolutions and products too, as is its
# default, the gradients of kernels take up to twice as long (README.md, "Speed").
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

# A large program runs in an order that keeps few temporaries: a quarter less memory, and as fast
# (README.md, "Speed"). A small one gains more from operations that run side by side.
LARGE_CPU_OPTIONS = CPU_OPTIONS | {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
LARGE = 10**7  # numbers in a state; our choice: digits' holds 10^6 and loses, cifar10's 3 10^8

# Parameters of mallopt(3), from malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1

_FOR_CPUS: ContextVar[bool | None] = ContextVar("forms for CPUs", default=None)


@contextlib.contextmanager
def for_cpus(wanted: bool = True) -> Iterator[None]:
    """What is traced within takes the forms for CPUs, which have gradients in reverse mode.

    JAX writes those of convolutions as convolutions over axes in other orders. XLA sorts axes for
    CPUs, but not inside loops (`accumulate`, `steps_per_call`), where they took a hundred times as
    long. Convolutions of doubled images are made in parts: half the time there, not measured
    elsewhere. Blocks of 2 x 2 pixels are added as slices: XLA's sums of them took 1 to 2 % of a
    cifar10 step.

    Args:
      wanted: or not; where contexts are nested the outermost decides.
    """
    outer = _FOR_CPUS.get()
    token = _FOR_CPUS.set(wanted if outer is None else outer)
    try:
        yield
    finally:
        _FOR_CPUS.reset(token)


def convolve(x: Images, kernel: Kernel, padding: Padding, precision: Precision = None) -> Images:
    """jax.lax.conv_general_dilated of NHWC images, stride 1; see for_cpus."""
    return (_in_order if _FOR_CPUS.get() else _convolve)(x, kernel, padding, precision)


def _convolve(x, kernel, padding, precision):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def doubled(x: Images) -> Images:
    """Each pixel as a block of 2 x 2."""
    return (_cpu_doubled if _FOR_CPUS.get() else _doubled)(x)


def halved(x: Images) -> Images:
    """Each block of 2 x 2 pixels as its mean."""
    return (_cpu_halved if _FOR_CPUS.get() else _halved)(x)


def _doubled(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _halved(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _block_sums(x):
    b, h, w, c = x.shape
    rows = x.astype(jnp.float32).reshape(b, h // 2, 2, w, c)
    columns = (rows[:, :, 0] + rows[:, :, 1]).reshape(b, h // 2, w // 2, 2, c)
    return (columns[..., 0, :] + columns[..., 1, :]).astype(x.dtype)


def _block_means(x):
    return _block_sums(x) / 4


_cpu_doubled, _cpu_halved = jax.custom_vjp(_doubled), jax.custom_vjp(_block_means)
_cpu_doubled.defvjp(lambda x: (_doubled(x), None), lambda _, dy: (_block_sums(dy),))
_cpu_halved.defvjp(lambda x: (_block_means(x), None), lambda _, dy: (_doubled(dy / 4),))


def convolve_doubled(x: Images, kernel: Kernel, precision: Precision = None) -> Images:
    """`convolve` of doubled(x) by 3 x 3, padding 1; on CPUs without making that image.

    Of three neighbours in one of its rows two are equal. So each output in a block is a 2 x 2
    convolution of x itself: four of them, 4/9 of the products.
    """
    if not _FOR_CPUS.get():
        return _convolve(doubled(x), kernel, ((1, 1), (1, 1)), precision)
    b, h, w, _ = x.shape
    rows = []
    for i, of_row in enumerate(_halves(kernel, axis=0)):
        columns = [
            convolve(x, part, ((1 - i, i), (1 - j, j)), precision)
            for j, part in enumerate(_halves(of_row, axis=1))
        ]
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """What three taps are to the first and to the second pixel of a block: two taps each."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return (
        jnp.concatenate([first, middle + last], axis),
        jnp.concatenate([first + middle, last], axis),
    )


_in_order = jax.custom_vjp(_convolve, nondiff_argnums=(2, 3))


def _forward(x, kernel, padding, precision):
    return _convolve(x, kernel, padding, precision), (x, kernel)


def _backward(padding, precision, operands, dy):
    x, kernel = operands
    sizes = zip(kernel.shape[:2], padding, strict=True)
    rest = tuple((size - 1 - before, size - 1 - after) for size, (before, after) in sizes)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _in_order(dy, turned, rest, precision)
    # A kernel's gradient sums over images and pixels: channels take the place of images.
    dkernel = _in_order(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding, precision)
    return dx, dkernel.transpose(1, 2, 0, 3)


_in_order.defvjp(_forward, _backward)


def with_options(function: Callable, plain: Callable) -> Callable:
    """`plain`, compiled with the options of its size unless it is part of another program."""
    jit = functools.partial(jax.jit, function, donate_argnums=0)
    small, large = jit(compiler_options=CPU_OPTIONS), jit(compiler_options=LARGE_CPU_OPTIONS)

    def alone(state):
        return large if sum(leaf.size for leaf in jax.tree.leaves(state)) >= LARGE else small

    @functools.wraps(plain)
    def call(state, *others):
        leaves = jax.tree.leaves((state, *others))
        within = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (plain if within else alone(state))(state, *others)

    call.lower = lambda state, *others: alone(state).lower(state, *others)
    return call


@functools.cache
def knows_options() -> bool:
    """Whether this version of XLA knows the options: it calls one of them experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=LARGE_CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def keep_freed() -> None:
    """Has malloc keep it, on CPUs and with the GNU C library; called before JAX has devices.

    XLA asks malloc for a call's temporaries as one block, which malloc maps from the system and
    returns to it when the call is over. Every call then begins with pages that the system has yet
    to find and clear: 420 000 in a cifar10 step of four images. malloc can be told to keep what the
    main thread frees, large as it may be, but not what others do: calls are therefore not handed to
    a thread of JAX's, and return when they are done. The process holds on to the most that it has
    needed, and to a few blocks more: one in which something lives on is not whole again. On GPUs
    and TPUs, and with another C library, malloc stays as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # of CPUs alone, on any machine
    if jax.default_backend() == "cpu":
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_TRIM_THRESHOLD, NEVER)
        malloc.mallopt(M_MMAP_MAX, 0)
