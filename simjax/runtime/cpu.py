"""CPU-only performance: fast convolutions, XLA options and memory reuse.

Convolutions have stride 1; 2x upsampling and downsampling of images are here too.
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
Padding = tuple[tuple[int, int], tuple[int, int]]  # (before, after) for height and for width
Precision = jax.lax.PrecisionLike

# Restricts YNNPACK to reductions. XLA's default also gives it convolutions and matmuls, with which
# kernel gradients take up to twice as long (simjax/perf/README.md).
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

# Large programs: operations in an order with few live temporaries, a quarter less memory at the
# same speed (simjax/perf/README.md). Small programs gain more from concurrent operations.
LARGE_CPU_OPTIONS = CPU_OPTIONS | {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# Numbers in a state; our choice: the digits state (10^6) gets slower, cifar10's is 3 10^8.
LARGE = 10**7

# Parameters of mallopt(3), from the GNU C library's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1

_FOR_CPUS: ContextVar[bool | None] = ContextVar("forms for CPUs", default=None)


@contextlib.contextmanager
def for_cpus(wanted: bool = True) -> Iterator[None]:
    """Traces with CPU implementations of convolution, upsampling and downsampling.

    They support reverse-mode gradients only. JAX expresses convolution gradients as convolutions
    over permuted axes. XLA reorders these axes on CPUs, but not inside loops (`accumulate`,
    `steps_per_call`), where the gradients took a hundred times as long. Convolutions of upsampled
    images are split into four small ones: half the time on CPUs, not measured elsewhere. Blocks of
    2 x 2 pixels are added as slices: XLA's reductions of them took 1 to 2 % of a cifar10 step.

    Args:
      wanted: False selects the standard implementations; the outermost of nested contexts decides.
    """
    outer = _FOR_CPUS.get()
    token = _FOR_CPUS.set(wanted if outer is None else outer)
    try:
        yield
    finally:
        _FOR_CPUS.reset(token)


def convolve(x: Images, kernel: Kernel, padding: Padding, precision: Precision = None) -> Images:
    """jax.lax.conv_general_dilated for NHWC images, stride 1; see for_cpus.

    >>> x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8))
    >>> convolve(x, kernel, ((1, 1), (1, 1))).shape
    (1, 4, 4, 8)
    """
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
    """Nearest-neighbour 2x upsampling of NHWC images.

    >>> doubled(jnp.array([[1.0, 2.0]]).reshape(1, 1, 2, 1))[0, ..., 0].tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    return (_cpu_doubled if _FOR_CPUS.get() else _doubled)(x)


def halved(x: Images) -> Images:
    """2x downsampling of NHWC images: means over 2 x 2 blocks.

    >>> halved(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
    1.5
    """
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
    """3 x 3 convolution of doubled(x) with padding 1.

    On CPUs the upsampled image is never formed. Two of three neighbours in its rows are equal, so
    each of the four outputs of a 2 x 2 block is a 2 x 2 convolution of x: 4/9 of the FLOPs.
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
    """Three taps as two taps for each pixel of an upsampled pair."""
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
    # The kernel gradient sums over images and pixels: channels become the batch axis.
    dkernel = _in_order(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding, precision)
    return dx, dkernel.transpose(1, 2, 0, 3)


_in_order.defvjp(_forward, _backward)


def with_options(function: Callable, plain: Callable) -> Callable:
    """Compiles `function` with the CPU options for its state's size.

    Args:
      plain: jitted `function` without options, used when traced as part of another program.
    """
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
def supports_options() -> bool:
    """Whether this XLA version accepts the options, one of which is experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=LARGE_CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def keep_freed() -> None:
    """Makes malloc reuse freed memory on CPUs, with the GNU C library.

    Call it before JAX creates devices. XLA allocates a call's temporaries as one block, which
    malloc maps from the system and unmaps after the call, so that every call starts with page
    faults: 420 000 in a cifar10 step of batch 4. malloc can be set to keep large blocks freed by
    the main thread, but not by other threads; asynchronous dispatch is therefore turned off. The
    process keeps its peak memory and a few blocks more, due to fragmentation. On GPUs and TPUs only
    the dispatch to CPU devices changes; with other C libraries nothing does.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # affects CPU devices only
    if jax.default_backend() == "cpu":
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_TRIM_THRESHOLD, NEVER)
        malloc.mallopt(M_MMAP_MAX, 0)
