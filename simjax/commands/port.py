"""Downloads, verifies and ports published weights, and prints a summary.

python -m simjax port SOURCE [--FLAG=VALUE ...]

SOURCE is a known name (simjax/porting/zoo.py), a URL, a file or a folder. The summary has the
architecture, preconditioning, parameter count, sha256 and tensor names. Only the download cache is
written.

Examples:
  python -m simjax port DiT-XL-2-256x256
  python -m simjax port DiT-XL-2-256x256.pt --family=dit
  python -m simjax port edm-cifar10-32x32-cond-vp
"""

from absl import flags, logging

from simjax.commands import flags as command_line
from simjax.errors import ConfigError

_FAMILY = flags.DEFINE_string("family", "", "Family of a DiT or SiT .pt file: dit, sit, sit_gvp.")
_SHA256 = flags.DEFINE_string(
    "sha256", "", "Expected sha256 of the file; default: as at first use."
)


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    rest = command_line.parse(argv)
    if len(rest) != 2:
        raise ConfigError(
            "expected one source: a known name (e.g. edm-cifar10-32x32-cond-vp), a URL, a file or "
            f"a folder; got {' '.join(rest[1:]) or 'none'}."
        )
    return rest


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    from simjax.models import port  # imports JAX: only after the flags are validated

    ported = port.port(argv[1], family=_FAMILY.value, sha256=_SHA256.value)
    print(port.report(ported), port.overview(ported), sep="\n\n")
