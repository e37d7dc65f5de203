"""Reads arrays recorded from the reference code: layouts, ported networks, errors."""

import dataclasses
import functools
import inspect
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from simjax.diffusion import noise, schedule
from simjax.diffusion.families import FAMILIES
from simjax.diffusion.precondition import Precondition
from simjax.losses import distances
from simjax.models import build
from simjax.models.generator import OneStep
from simjax.networks.denoiser import Denoiser, as_denoise
from simjax.porting.maps import edm, rules
from simjax.train import step
from simjax.typing import Denoise, Params

Tensors = Mapping[str, np.ndarray]  # official name -> array, PyTorch layout


class Recording:
    """The arrays of one recorded file."""

    def __init__(self, path: pathlib.Path):
        with np.load(path) as arrays:
            self.arrays = dict(arrays)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def get(self, key: str) -> np.ndarray | None:
        """An optional entry, or None."""
        return self.arrays.get(key)

    def json(self, key: str) -> Any:
        """A text entry."""
        return json.loads(str(self[key]))

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays with a prefix such as "param/", by official name."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def images(self, key: str) -> np.ndarray:
        """Images (..., c, h, w) as (..., h, w, c)."""
        return np.moveaxis(self[key], -3, -1)

    def labels(self, key: str, batch: int) -> np.ndarray:
        """One-hot labels, or (batch, 0) if the file has none."""
        return self[key] if key in self else np.zeros((batch, 0), np.float32)

    def per_example(self, key: str) -> np.ndarray:
        """(b, 1, 1, 1) or (b,) to (b,)."""
        return self[key].reshape(len(self[key]))


read = functools.cache(Recording)


@dataclasses.dataclass(frozen=True)
class Network:
    """An official network in simjax: denoiser, parameters, and map of official names."""

    denoise: Denoise
    params: Params
    module: Denoiser
    precondition: Precondition
    mapping: Sequence[rules.Rule]
    official: Tensors

    def tree(self, tensors: Tensors) -> Params:
        """Gradients or masks by official name as a parameter tree; missing ones are zero."""
        whole = {name: np.zeros(value.shape) for name, value in self.official.items()} | tensors
        template = nnx.to_pure_dict(nnx.state(self.module))
        return _restricted(rules.apply(self.mapping, whole, template), self.params)


_DENOISERS: dict[Any, Denoise] = {}  # equal networks share one compiled function


def network(config: Mapping[str, Any], tensors: Tensors) -> Network:
    """Builds the network of the constructor arguments and ports its tensors."""
    wrapper = edm.WRAPPERS[config["precond"]]
    family = FAMILIES[wrapper.precondition].coefficients
    constants = {k: config[k] for k in inspect.signature(family).parameters if k in config}
    precondition = functools.partial(family, **constants)
    outside = {"precond", "model_type", "sigma_data", *constants, *wrapper.known, *edm.IGNORED}
    inner = {name: value for name, value in config.items() if name not in outside}
    described = edm.network(config.get("model_type", wrapper.model), inner)
    mapping = edm.rules(described)

    def make():
        inside = build.network(described, wrapper.precondition, jnp.float32, nnx.Rngs(0))
        return Denoiser(inside, precondition)

    module = nnx.eval_shape(make)  # shapes only: all values are from the file
    template = nnx.to_pure_dict(nnx.state(module))
    nnx.update(module, rules.apply(mapping, tensors, template))
    denoise, params = as_denoise(module)
    frequencies = tensors.get("model.map_noise.freqs", np.zeros(0)).tobytes()
    key = json.dumps(config, sort_keys=True), frequencies
    denoise = _DENOISERS.setdefault(key, jax.jit(denoise, static_argnames="with_logits"))
    return Network(denoise, params, module, precondition, mapping, tensors)


def path_of(name: str, mapping: Sequence[rules.Rule]) -> str:
    """Path "a/b/c" of an official parameter under the porting rules."""
    for rule in mapping:
        if match := rules.re.fullmatch(rule.pattern, name):
            return match.expand(rule.path)
    raise KeyError(name)


def flat(tree: Params) -> dict[str, np.ndarray]:
    """{"a/b/c": leaf} of a parameter tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in leaves}


def step_fns(denoise: Denoise, sigma_init: float, **options: Any) -> step.StepFns:
    """StepFns with one denoiser for all roles."""
    shared = {
        "loss": None,
        "generate": functools.partial(OneStep(sigma_init).train_sample, denoise),
        "denoise_teacher": denoise,
        "denoise_fake": denoise,
        "distance": distances.l2_squared,
        "fake_score_weight": noise.edm_weight,
    }
    return step.StepFns(**shared | {"denoise": denoise} | options)


def lognormal(normal: np.ndarray, hyper: Mapping[str, Any]) -> np.ndarray:
    """sigma of EDM's training distribution from standard normal draws, (b, ...)."""
    law = {"mean": hyper.get("P_mean", -1.2), "std": hyper.get("P_std", 1.2)}  # EDM table 1
    return schedule.lognormal(normal.reshape(-1), **law)


def karras(uniform: np.ndarray, hyper: Mapping[str, Any], tmax: float) -> np.ndarray:
    """SiD's sigma at t = uniform * tmax / 1000, on the Karras schedule."""
    path = {name: hyper[name] for name in ("sigma_min", "sigma_max", "rho") if name in hyper}
    return schedule.karras(uniform.reshape(-1) * np.float32(tmax / 1000), **path)


def rel(a: Any, b: Any, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """max|a - b| / max|b|, over all axes or over `axis`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return np.abs(a - b).max(axis) / np.abs(b).max(axis)


def worst_tensor(ours: Params, expected: Params) -> tuple[float, str]:
    """Largest rel of a tensor, and its name; max|b| is at least 1e-3 of the global maximum."""
    ours, expected = flat(ours), flat(expected)
    assert ours.keys() == expected.keys()
    floor = 1e-3 * max(np.abs(b).max() for b in expected.values())
    errors = {
        name: np.abs(ours[name] - b).max() / max(np.abs(b).max(), floor)
        for name, b in expected.items()
    }
    name = max(errors, key=lambda n: np.nan_to_num(errors[n], nan=np.inf))
    return errors[name], name


def _restricted(tree: Params, template: Params) -> Params:
    if not isinstance(template, Mapping):
        return tree
    return {name: _restricted(tree[name], node) for name, node in template.items()}


def worst(ours, expected):
    return np.abs(ours - expected).max() / np.abs(expected).max()
