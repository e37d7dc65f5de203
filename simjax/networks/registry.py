"""Denoising networks by class name, as in configs and config.json.

To add one, write a file with its module and options, and add it to NETWORKS.
"""

from simjax.networks.adm_unet import AdmUNet
from simjax.networks.dit import DiT
from simjax.networks.network import Network
from simjax.networks.pixart import PixArt
from simjax.networks.song_unet import SongUNet

NETWORKS: dict[str, type[Network]] = {
    kind.__name__: kind for kind in (SongUNet, AdmUNet, DiT, PixArt)
}
