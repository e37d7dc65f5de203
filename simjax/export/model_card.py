"""Model card of an export: interface, usage of each file, provenance, metrics.

A README.md with the front matter of the Hugging Face hub.
"""

import json
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from simjax import config as c
from simjax.evaluation.evaluator import Row, table
from simjax.export import formats, scheduler, stablehlo
from simjax.models import build, exported
from simjax.models.generator import Generator, generator_of
from simjax.networks.pixart import PIXELS
from simjax.porting.maps import edm
from simjax.runtime import versions

NAME = "README.md"
FRONT_MATTER = """---
library_name: simjax
{task}tags:
- one-step-generation
- diffusion-distillation
- score-implicit-matching
- jax
---"""
LICENSE = """## License

Not set. Weights derived from a published teacher are subject to that teacher's license.
"""
BATCH = 4  # samples per example; our choice


class Origin(NamedTuple):
    """Origin of the weights.

    Attributes:
      settings: the run's whole config; for published weights, the network's settings.
      provenance: facts by label, such as "sha256".
      report: report.json of the run, or None.
    """

    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    report: Mapping[str, Any] | None


class Card(NamedTuple):
    """Contents of a model card; `Origin` is the origin of the weights.

    Attributes:
      name: title.
      role: one sentence that describes the weights.
      config: complete config of the generator.
      checks: result of the comparison after reading back, by format.
    """

    name: str
    role: str
    config: c.Config
    checks: Mapping[str, str]
    origin: Origin


def text(card: Card) -> str:
    """The whole README.md."""
    origin = card.origin
    reads_prompts = card.config.network.condition.reads_prompts
    task = "pipeline_tag: text-to-image\n" if reads_prompts else ""
    parts = [
        f"{FRONT_MATTER.format(task=task)}\n\n# {card.name}\n\n{card.role}",
        _interface(card.config),
        *[
            f"## {name}\n\n{USAGE[name](card.config)}\n\nRead back: {found}."
            for name, found in card.checks.items()
        ],
        f"## Provenance\n\n{_list(origin.provenance)}",
        f"## Metrics\n\n{_metrics(origin.report)}",
        f"## Settings\n\n```json\n{json.dumps(origin.settings, indent=2)}\n```",
        f"## Versions\n\n{_list(_versions())}",
        LICENSE,
    ]
    return "\n\n".join(parts)


def _interface(config: c.Config) -> str:
    """Inputs and outputs of the generator."""
    height, width, channels = build.image_shape(config)
    out = "an image, about -1 to 1" if channels in (1, 3) else "a latent of an autoencoder"
    generator = generator_of(config)
    settings = ", ".join(f"{name} = {value}" for name, value in generator.settings().items())
    return f"""A sample takes {generator.name} of the denoiser D, from z ~ N(0, I):

    {generator.formula}        {settings}

z and x0 have shape ({height}, {width}, {channels}), in PyTorch ({channels}, {height}, {width}).
x0 is {out}. The condition is {config.network.condition.describe()}."""


def _own(config: c.Config) -> str:
    folders, condition = "", ""
    if config.network.condition.reads_prompts:
        folders = ", encoder=T5_FOLDER, autoencoder=VAE_FOLDER"
        condition = ', prompts=["a prompt"]'
    elif config.network.label_dim:
        condition = ", labels=[0]"
    return f"""`{exported.WEIGHTS}` and `{exported.SETTINGS}`, for simjax:

```python
import simjax
generator = simjax.load("."{folders})
images = simjax.draw(generator, {BATCH}{condition})
```"""


def _program(config: c.Config) -> str:
    condition, given, note = config.network.condition, "z", ""
    generator, noise, shape = generator_of(config), "", build.image_shape(config)
    if generator.draws_noise:
        later = (BATCH, generator.evaluations - 1, *shape)
        noise = f"noise = jax.random.normal(jax.random.key(1), {later})  # later calls\n"
        given = "z, noise"
    if condition.reads_prompts:
        given += ", embedding, mask"
        note = (
            f"embedding: float32 ({BATCH}, {condition.length}, {condition.channels}); mask: bool, "
            "false for padding tokens. "
        )
    elif condition.count:
        given += f", jnp.arange({BATCH}, dtype=jnp.int32) % {condition.count}"
        note = "Class -1 is the null class. "
    return f"""`{stablehlo.PROGRAM}`, `{stablehlo.LOADER_NAME}` and `{exported.WEIGHTS}`, for JAX
without simjax (`pip install jax flatbuffers`), with any batch size, on CPUs, GPUs and TPUs:

```python
import jax, jax.numpy as jnp
from load_generator import generate
z = jax.random.normal(jax.random.key(0), {(BATCH, *shape)})
{noise}x0 = generate({given})
```

{note}Written by jax {versions.of("jax")["jax"]}; jax.export guarantees that later versions read it
for at least six months."""


def _edm(config: c.Config) -> str:
    name, _ = edm.constructor(exported.described(config))
    label_dim = config.network.label_dim
    height, width, channels = build.image_shape(config)
    labels = f"torch.eye({label_dim})[torch.arange({BATCH}) % {label_dim}]" if label_dim else "None"
    return f"""`{formats.EDM_WEIGHTS}` and `{formats.EDM_SETTINGS}`, for the code of NVlabs/edm:

```python
import json, torch
from safetensors.torch import load_file
from training.networks import {name}
net = {name}(**json.load(open("{formats.EDM_SETTINGS}"))["arguments"]).eval()
net.load_state_dict(load_file("{formats.EDM_WEIGHTS}"))
z = torch.randn({BATCH}, {channels}, {height}, {width})
{_called(generator_of(config), labels)}
```"""


def _called(generator: Generator, labels: str) -> str:
    """Code that calls EDM's `net` once, or in a loop."""
    if generator.evaluations == 1:
        (sigma,) = generator.levels
        return f"x0 = net({sigma} * z, torch.full([{BATCH}], {sigma}), {labels})"
    eps = {"fresh": "torch.randn_like(z)", "fixed": "z", "ddim": "(xt - x0) / sigma"}
    return f"""x0, eps = torch.zeros_like(z), z
for sigma in {list(generator.levels)}:
    xt = x0 + sigma * eps
    x0 = net(xt, torch.full([{BATCH}], sigma), {labels})
    eps = {eps[generator.renoise]}"""


def _diffusers(config: c.Config) -> str:
    channels, levels = config.network.image_channels, generator_of(config).levels
    kind = formats.DIFFUSERS[type(config.network)].class_name
    given, options, pipeline = _surroundings(config.network)
    several = len(levels) > 1
    call = f"""transformer(
    xt,
    timestep=torch.full((len(z),), time),
    {options},
).sample[:, :{channels}]  # the other channels: variance"""
    body = (CHAIN if several else CALL).format(
        sigma=levels[0],
        time=scheduler.times(levels),
        given=given,
        call=textwrap.indent(call, "    " * (1 + several)).strip(),
    )
    names = f"{kind}, LCMScheduler" if several else kind
    folders = f"`{formats.TRANSFORMER}/`" + " and `scheduler/`" * several
    return f"""{folders}, for diffusers:

```python
import torch
from diffusers import {names}
transformer = {kind}.from_pretrained("{formats.TRANSFORMER}").eval()
{body.strip()}
```

The schedulers of the pipeline are for many steps: use only its text encoder and autoencoder.
TEACHER is the pipeline of the network that these weights were initialised from.

```python
{pipeline}
images = pipeline.vae.decode(x0 / pipeline.vae.config.scaling_factor).sample  # about -1 to 1
```"""


CALL = """
sigma, time = {sigma}, {time[0]}  # sigma_init, and the nearest DDPM time step

@torch.no_grad()
def generate(z, {given}):
    xt = z * sigma / (1 + sigma**2) ** 0.5
    eps = {call}
    return sigma * (z - eps)
"""
CHAIN = """
scheduler = LCMScheduler.from_pretrained("scheduler")
sigma, times = {sigma}, {time}  # sigma of the first call; DDPM time steps of all calls

@torch.no_grad()
def generate(z, {given}):
    scheduler.set_timesteps(timesteps=times)
    xt = z * sigma / (1 + sigma**2) ** 0.5
    for time in times:
        eps = {call}
        xt, x0 = scheduler.step(eps, time, xt, return_dict=False)
    return x0
"""


def _surroundings(network: c.Network) -> tuple[str, str, str]:
    """Code around the transformer: parameter names, keyword arguments, pipeline example."""
    noise = f"torch.randn(1, {network.image_channels}, {network.resolution}, {network.resolution})"
    if not network.condition.reads_prompts:
        pipeline = f"""from diffusers import DiTPipeline
pipeline = DiTPipeline.from_pretrained(TEACHER, transformer=transformer)
x0 = generate({noise}, torch.tensor([0]))"""
        return "classes", "class_labels=classes", pipeline
    sizes = '{"resolution": None, "aspect_ratio": None}'
    if network.size_conditioning:
        size = f"torch.full((len(z), 2), {PIXELS * network.resolution}.0)"
        sizes = f'{{"resolution": {size}, "aspect_ratio": torch.ones(len(z), 1)}}'
    options = (
        "encoder_hidden_states=embedding",
        "encoder_attention_mask=mask",
        f"added_cond_kwargs={sizes}",
    )
    pipeline = f"""from diffusers import PixArtAlphaPipeline
pipeline = PixArtAlphaPipeline.from_pretrained(TEACHER, transformer=transformer)
embedding, mask, *_ = pipeline.encode_prompt("a prompt", do_classifier_free_guidance=False)
x0 = generate({noise}, embedding, mask)"""
    return "embedding, mask", ",\n    ".join(options), pipeline


USAGE = {"safetensors": _own, "edm": _edm, "diffusers": _diffusers, "stablehlo": _program}


def _metrics(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "None: nothing was measured for these weights."
    seeds = ", ".join(map(str, report.get("seeds", [report["seed"]])))
    lines = [f"Report of the run, seed {seeds}, on {report['device']}."]
    if isinstance(report["protocol"], str):  # no reference
        lines.append(report["protocol"])
    else:
        for name, space in report["protocol"].items():
            real = space["reference"]
            lines.append(f"Reference of `{name}`: {real['images']} images of {real['name']}.")
    measured = table([Row(**row) for row in report["rows"]])
    return f"{' '.join(lines)}\n\n```\n{measured}\n```"


def _versions() -> dict[str, str]:
    return versions.of("jax", "flax", "numpy")


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())
