"""Real images by name: each source loads (images (n, h, w, c) in [-1, 1], labels (n,))."""

from simjax.data import digits

SOURCES = {"digits": digits.load}
