"""The networks that denoise, by the names that config files and config.json have for them.

A new one is a file with its module and its options, and a line here.
"""

from simjax.networks.adm_unet import AdmUNet
from simjax.networks.dit import DiT
from simjax.networks.network import Network
from simjax.networks.pixart import PixArt
from simjax.networks.song_unet import SongUNet

NETWORKS: dict[str, type[Network]] = {
    kind.__name__: kind for kind in (SongUNet, AdmUNet, DiT, PixArt)
}
