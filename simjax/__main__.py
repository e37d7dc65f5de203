"""The command line: `python -m simjax NAME [--FLAG=VALUE ...]`, or `simjax NAME`."""

import difflib
import importlib
import sys

COMMANDS = {  # each a module of simjax/commands
    "sample": "draw images from a run, an export or published weights",
    "evaluate": "compute FID and other metrics of a run, published weights or images",
    "export": "convert a generator to other formats, with a model card",
    "port": "download, verify and describe published weights",
    "probe": "check a teacher's denoiser and propose settings to distil it",
    "encode-prompts": "cache text embeddings for text-to-image training",
    "benchmark": "time a config's training step and samplers on this machine's devices",
    "aot": "compile a config ahead of time for TPUs: memory, FLOPs, roofline",
}
USAGE = f"""\
simjax NAME [--FLAG=VALUE ...]

{chr(10).join(f"  {name:16}{what}" for name, what in COMMANDS.items())}

simjax NAME --help lists the flags of a command. A model is distilled by
python -m simjax.main; see its --help.

Examples:
  python -m simjax.main --config=configs/digits.py
  simjax sample --source=runs/digits --classes=3,7"""


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name.lstrip("-") in ("help", "h"):
        from simjax.commands import flags

        flags.print_help(USAGE)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        sys.exit(f"simjax: unknown command {name}{meant} Known: {', '.join(COMMANDS)}.")
    sys.argv = [f"simjax {name}", *rest]
    importlib.import_module(f"simjax.commands.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
