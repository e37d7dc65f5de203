"""Fetches, checks and ports published weights, and prints what they are.

python -m simjax port edm-cifar10-32x32-cond-vp
python -m simjax port sim.pth --sha256=...

The source is a known name (simjax/porting/zoo.py), a URL, a file or a folder. Nothing is written
but the cache of downloads.
"""

from absl import flags, logging

from simjax.commands import flags as command_line
from simjax.errors import ConfigError

_FAMILY = flags.DEFINE_string("family", "", "Family of a .pt that may be DiT's or SiT's: dit, sit.")
_SHA256 = flags.DEFINE_string("sha256", "", "What the file must have; by default it is told.")


def main() -> None:
    """Parses flags and ports; a user's mistake is one message and exit status 1."""
    command_line.start(_run, parse=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    rest = command_line.parse(argv)
    if len(rest) != 2:
        raise ConfigError(
            f"expected one source, as edm-cifar10-32x32-cond-vp, a URL or a file; got "
            f"{' '.join(rest[1:]) or 'none'}."
        )
    return rest


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    from simjax.models import port  # imports JAX: only once the flags are known to be good

    ported = port.port(argv[1], family=_FAMILY.value, sha256=_SHA256.value)
    print(port.report(ported), port.overview(ported), sep="\n\n")
