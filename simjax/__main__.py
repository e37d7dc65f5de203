"""python -m simjax NAME [--FLAG=VALUE ...], or simjax NAME: what is done with runs and weights."""

import difflib
import importlib
import sys

COMMANDS = {  # a module of commands/ each
    "sample": "draw pictures from a run, an export or published weights",
    "evaluate": "measure a run, published weights or images",
    "export": "write a generator for other programs, with a model card",
    "port": "fetch and check published weights, and print what they are",
    "probe": "look at a teacher: its noise levels, its calibration, settings for it",
    "encode-prompts": "make the cache of captions that text-to-image training reads",
    "benchmark": "time a config's programs on the devices that are here",
    "aot": "compile a config for TPUs that are not here: memory, flops",
}
USAGE = f"""\
simjax NAME [--FLAG=VALUE ...]

{chr(10).join(f"  {name:16}{what}" for name, what in COMMANDS.items())}

simjax NAME --help shows the flags of one. A model is distilled by
python -m simjax.main --config=configs/digits.py; see README.md."""


def main() -> None:
    """Runs the command that is named; a user's mistake is one message and exit status 1."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name.lstrip("-") in ("help", "h"):
        print(USAGE)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        sys.exit(f"simjax: there is no command {name}{meant} Known: {', '.join(COMMANDS)}.")
    sys.argv = [f"simjax {name}", *rest]
    importlib.import_module(f"simjax.commands.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
