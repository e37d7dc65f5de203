"""Config schema, validation and serialisation.

Config files write `from simjax import config as c` and return a `c.Config`.

>>> options = Config(batch=64, loss=Loss(name="sid", alpha=1.0))
>>> options.loss.alpha, options.generator.sigma_init
(1.0, 2.5)
"""

from simjax.config.checks import (
    complete,
    pick,
    require_null_condition,
    require_teacher,
    resolved,
    validate,
)
from simjax.config.levels import generator_levels
from simjax.config.presets import sida
from simjax.config.real_images import needs_real_images, require_logits
from simjax.config.registries import register
from simjax.config.scales import fake_score_scales
from simjax.config.schema import (
    AUGMENT_DIM,
    Adversarial,
    Config,
    Data,
    Ema,
    Evaluation,
    FakeScore,
    Generator,
    Loss,
    Optim,
    Real,
    Sampler,
    Sigma,
    Teacher,
    Text,
)
from simjax.config.serial import (
    Change,
    changes,
    describe,
    differences,
    from_dict,
    get_field,
    known_fields,
    network_from,
    to_dict,
)
from simjax.networks.network import Description, Network, Own
from simjax.networks.registry import AdmUNet, DiT, PixArt, SongUNet
from simjax.networks.t5 import T5
from simjax.runtime.values import require_known

__all__ = [
    "AUGMENT_DIM",
    "AdmUNet",
    "Adversarial",
    "Change",
    "Config",
    "Data",
    "Description",
    "DiT",
    "Ema",
    "Evaluation",
    "FakeScore",
    "Generator",
    "Loss",
    "Network",
    "Optim",
    "Own",
    "PixArt",
    "Real",
    "Sampler",
    "Sigma",
    "SongUNet",
    "T5",
    "Teacher",
    "Text",
    "changes",
    "complete",
    "describe",
    "differences",
    "fake_score_scales",
    "from_dict",
    "generator_levels",
    "get_field",
    "known_fields",
    "needs_real_images",
    "network_from",
    "pick",
    "register",
    "require_known",
    "require_logits",
    "require_null_condition",
    "require_teacher",
    "resolved",
    "sida",
    "to_dict",
    "validate",
]
