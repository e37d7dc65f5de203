"""Fetch, check and port a published checkpoint, print what it is, and do nothing else.

python -m simjax.main --config=configs/port.py --config.teacher.source=edm-cifar10-32x32-cond-vp

The source is a known name (simjax/porting/zoo.py), a URL or a file.
"""

from simjax import config as c


def get_config() -> c.Config:
    return c.Config(mode="port")
