"""Closed-form tests of simjax/diffusion."""
