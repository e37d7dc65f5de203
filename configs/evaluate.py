"""Sample and measure a published one-step generator, such as SiD's.

python -m simjax.main --config=configs/evaluate.py --config.generator.source=FILE_OR_URL

With --config.data.source=... (see simjax/data) it is compared with real images, too.
"""

from simjax import config as c


def get_config() -> c.Config:
    return c.Config(mode="evaluate")
