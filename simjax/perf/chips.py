"""Published specifications of TPUs and GPUs: memory, peak FLOP/s, bandwidth, topologies.

Sources: Google Cloud's page of each TPU generation, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,
v6e,tpu7x} (bfloat16 peaks); NVIDIA's datasheet of each GPU. Called from
simjax/commands/aot.py, simjax/perf/footprint.py and simjax/perf/timing.py.
"""

import dataclasses
import importlib.util
import os
from typing import Any

from simjax.errors import ConfigError

GIB = 2**30

# Lets libtpu start on a machine without TPUs; variables that are already set keep their value.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server here
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip to lock
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # required, its value is unused
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip: HBM size, peak FLOP/s and HBM bandwidth."""

    memory: float  # HBM, bytes
    flops: float  # bfloat16 peak, FLOP/s
    bandwidth: float  # HBM, bytes/s
    example: str  # a valid topology
    kinds: tuple[str, ...]  # every device_kind that JAX uses; the first is libtpu's
    devices: int = 1  # JAX devices per chip; they share memory and rates evenly
    options: tuple[tuple[str, str], ...] = ()  # extra arguments of the topology description


CHIPS = {
    # Megacore: two cores are one JAX device on Cloud TPU VMs; libtpu's default is two devices.
    "v4": Chip(
        32 * GIB,
        275e12,
        1200e9,
        "2x2x1",
        ("TPU v4",),
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(16 * GIB, 197e12, 819e9, "2x4", ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, "2x2x2", ("TPU v5", "TPU v5p")),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, "4x4", ("TPU v6 lite", "TPU v6e")),
    # Two dies, one JAX device each.
    "tpu7x": Chip(192 * GIB, 2307e12, 7380e9, "2x2x1", ("TPU7x",), devices=2),
}

# bfloat16 passes per matmul for each compute dtype: networks/denoiser.py sets
# jax.lax.Precision.HIGHEST in float32, which takes six passes on a TPU (docstring of Precision).
PASSES = {"bfloat16": 1, "float32": 6}

# JAX's device_kind -> peak FLOP/s. bfloat16: dense tensor cores, half of the figure with sparsity
# in the datasheets of Hopper and Ada; float32: without tensor cores.
GPUS = {
    "NVIDIA H200": {"bfloat16": 989.5e12, "float32": 67e12},
    "NVIDIA H200 NVL": {"bfloat16": 835.5e12, "float32": 60e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989.5e12, "float32": 67e12},
    "NVIDIA H100 NVL": {"bfloat16": 835.5e12, "float32": 60e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756.5e12, "float32": 51e12},
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA A100-PCIE-40GB": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA A100 80GB PCIe": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA L4": {"bfloat16": 121e12, "float32": 30.3e12},
}


def find(topology: str) -> Chip:
    """The chip of a topology such as v5e:2x4.

    >>> find("v5e:2x4").memory / GIB
    16.0

    Raises:
      ConfigError: unknown generation, or no layout after the colon.
    """
    name, colon, layout = topology.partition(":")
    if name not in CHIPS or not layout:
        raise ConfigError(f"--topology={topology} is not known; examples: {examples()}.")
    return CHIPS[name]


def examples() -> str:
    """One valid topology per generation.

    >>> examples()
    'v4:2x2x1, v5e:2x4, v5p:2x2x2, v6e:4x4, tpu7x:2x2x1'
    """
    return ", ".join(f"{name}:{chip.example}" for name, chip in CHIPS.items())


def prepare(topology: str) -> None:
    """Sets the environment for `devices`; call it before importing JAX.

    Raises:
      ConfigError: unknown topology, or libtpu is not installed.
    """
    find(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for TPUs needs libtpu in a separate environment: python -m venv tpu && "
            'tpu/bin/pip install -e ".[tpu]", then tpu/bin/python -m simjax aot ...; no TPU is '
            "needed."
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(topology: str) -> list[Any]:
    """Compile-only devices of a topology.

    Raises:
      ConfigError: libtpu rejects the topology.
    """
    import jax
    from jax.experimental import topologies

    options = dict(find(topology).options)
    if set(topology.partition(":")[2]) <= set("1x"):
        options["chips_per_host_bounds"] = (1, 1, 1)  # libtpu's default: four chips
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"--topology={topology}: {str(error).splitlines()[0]}; examples: {examples()}."
        ) from error
    return list(found.devices)


def peak_flops(kind: str, dtype: str) -> float | None:
    """Published peak FLOP/s of one JAX device, or None if unknown.

    >>> peak_flops("NVIDIA H200", "bfloat16") / 1e12
    989.5
    >>> peak_flops("TPU v5e", "float32") / 1e12  # six bfloat16 passes per matmul
    32.833...

    Args:
      kind: JAX's device_kind.
      dtype: compute dtype of the networks.
    """
    for chip in CHIPS.values():
        if kind in chip.kinds:
            return chip.flops / chip.devices / PASSES[dtype]
    return GPUS.get(kind, {}).get(dtype)


def roofline(flops: float, moved: float, chip: Chip, passes: int) -> tuple[float, str]:
    """Lower bound on a program's time: max(FLOPs / peak, bytes / bandwidth).

    It leaves out communication and latency; the bytes depend on how the compiler fused.

    >>> roofline(flops=1e12, moved=8e9, chip=CHIPS["v5e"], passes=1)
    (0.00976..., 'bytes')

    Args:
      flops, moved: FLOPs and bytes of memory traffic of one device.
      passes: bfloat16 passes per matmul, see PASSES.

    Returns:
      Seconds, and the limit that sets them: "flops" or "bytes".
    """
    times = {
        "flops": flops * passes * chip.devices / chip.flops,
        "bytes": moved * chip.devices / chip.bandwidth,
    }
    slowest = max(times, key=times.get)
    return times[slowest], slowest
