"""What is published of accelerators: sizes, rates and topologies of TPUs, rates of GPUs.

Sources: Google Cloud's page of each generation, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,
tpu7x}, whose peaks are those of bfloat16; NVIDIA's datasheet of each GPU. Called from
simjax/commands/aot.py, simjax/perf/footprint.py and simjax/perf/timing.py.
"""

import dataclasses
import importlib.util
import os
from typing import Any

from simjax.errors import ConfigError

GIB = 2**30

# For libtpu on a machine without TPUs; what is already set stays.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no chip to be alone with
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any: it is not used, but missed
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: HBM (bytes), products and sums (flops a second), HBM's rate (bytes a second)."""

    memory: float
    flops: float
    bandwidth: float
    example: str  # of a topology
    kinds: tuple[str, ...]  # JAX's device_kind: the first as libtpu says it, all as JAX knows them
    devices: int = 1  # that JAX sees; memory and rates are shared evenly
    options: tuple[tuple[str, str], ...] = ()  # of the topology's description


CHIPS = {
    # Two cores that JAX sees as one device on Cloud TPU VMs; libtpu's own default is two.
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
    # Two halves, two devices.
    "tpu7x": Chip(192 * GIB, 2307e12, 7380e9, "2x2x1", ("TPU7x",), devices=2),
}

# Passes of bfloat16 that a product of networks in this dtype takes: jax.lax.Precision.HIGHEST,
# which networks/denoiser.py asks for in float32, is six on a TPU (JAX's documentation of it).
PASSES = {"bfloat16": 1, "float32": 6}

# JAX's device_kind -> flops a second. bfloat16 is that of tensor cores without sparsity, half of
# what the datasheets of Hopper and Ada print; float32 that without tensor cores.
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

    Raises:
      ConfigError: it is of no known generation.
    """
    name, colon, layout = topology.partition(":")
    if name not in CHIPS or not layout:
        raise ConfigError(f"--topology={topology} is not known; examples: {examples()}.")
    return CHIPS[name]


def examples() -> str:
    """A topology of each generation."""
    return ", ".join(f"{name}:{chip.example}" for name, chip in CHIPS.items())


def prepare(topology: str) -> None:
    """Readies this process for `devices`; call it before anything imports JAX.

    Raises:
      ConfigError: the topology is of no known generation, or there is no libtpu.
    """
    find(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for TPUs needs libtpu, in an environment of its own: python -m venv tpu && "
            'tpu/bin/pip install -e ".[tpu]", then tpu/bin/python -m simjax aot ...; it needs no '
            "TPU."
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(topology: str) -> list[Any]:
    """The devices of a topology: programs can be compiled for them, and not run.

    Raises:
      ConfigError: libtpu refuses the topology.
    """
    import jax
    from jax.experimental import topologies

    options = dict(find(topology).options)
    if set(topology.partition(":")[2]) <= set("1x"):
        options["chips_per_host_bounds"] = (1, 1, 1)  # libtpu expects four chips
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"--topology={topology}: {str(error).splitlines()[0]}; examples: {examples()}."
        ) from error
    return list(found.devices)


def peak_flops(kind: str, dtype: str) -> float | None:
    """Flops a second of one device, for networks in this dtype; None: it is not in the tables.

    Args:
      kind: JAX's device_kind.
    """
    for chip in CHIPS.values():
        if kind in chip.kinds:
            return chip.flops / chip.devices / PASSES[dtype]
    return GPUS.get(kind, {}).get(dtype)


def roofline(flops: float, moved: float, chip: Chip, passes: int) -> tuple[float, str]:
    """The larger of flops over peak and bytes over bandwidth, seconds, and which it is.

    An estimate: it knows no communication, no latency, and how well the compiler fused.

    Args:
      flops, moved: of one device, flops and bytes.
      passes: of the bfloat16 unit for a product, see PASSES.
    """
    times = {
        "flops": flops * passes * chip.devices / chip.flops,
        "bytes": moved * chip.devices / chip.bandwidth,
    }
    slowest = max(times, key=times.get)
    return times[slowest], slowest
