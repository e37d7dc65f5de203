"""simjax: one-step generators from pretrained diffusion models, by score distillation in JAX."""

__version__ = "0.1.0"
