"""Encodes prompts with T5 into the cache that text-to-image training reads.

--encoder is a folder with a T5 encoder (config.json, weights) and, without --tokenizer, its
tokenizer. Prompts are not cleaned or normalised. An interrupted command resumes after the last
complete shard and ends with identical files. Several processes (started as for simjax.main, with a
shared --out) split the shards among them.

Examples:
  python -m simjax encode-prompts --prompts=captions.tsv --encoder=T5_FOLDER --out=CACHE
"""

import shlex
import signal
import sys

from absl import flags, logging
from etils import epath

from simjax import config as c
from simjax.commands import flags as command_line
from simjax.errors import ConfigError
from simjax.runtime import storage

_PROMPTS = flags.DEFINE_string(
    "prompts", None, "File of prompts: .txt (one per line), .tsv, .csv, .json or .jsonl."
)
_ENCODER = flags.DEFINE_string("encoder", None, "Folder of a T5 encoder.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer file or folder; default: --encoder.")
_OUT = flags.DEFINE_string("out", None, "Folder of the cache.")
_LENGTH = flags.DEFINE_integer("length", c.Text().length, "Maximum tokens per prompt.")
_BATCH = flags.DEFINE_integer("batch", 64, "Prompts per batch.")  # our choice
# Our choice: 4096 prompts of about 25 tokens take 0.8 GB with T5 XXL.
_SHARD = flags.DEFINE_integer("shard", 4096, "Prompts per shard file.")

# Flag: (minimum, maximum); our choices, except that 2 tokens are one and the end token.
BOUNDS = {"length": (2, 4096), "batch": (1, 2**16), "shard": (1, 2**20)}


def main() -> None:
    """Entry point; user errors exit with status 1 and one message."""
    command_line.start(_run, parse=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    rest = command_line.parse(argv)
    required = {"prompts": _PROMPTS.value, "encoder": _ENCODER.value, "out": _OUT.value}
    lacking = [f"--{name}=..." for name, value in required.items() if not value]
    if rest[1:] or lacking:
        raise ConfigError(
            f"expected {' '.join(lacking) or 'only flags'}, got {' '.join(argv[1:]) or 'nothing'}."
        )
    for name, (least, most) in BOUNDS.items():
        if not least <= flags.FLAGS[name].value <= most:
            raise ConfigError(
                f"--{name}={flags.FLAGS[name].value}; expected a number from {least} to {most}."
            )
    return rest


def _run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    # Imports JAX: only after the flags are validated.
    from simjax.runtime import processes

    processes.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # stop at once: complete shards are saved already
    processes.reuse_compiled()
    try:
        with processes.failing_at_once():
            _encode(epath.Path(_OUT.value).expanduser())
    finally:
        processes.leave()


def _encode(folder: epath.Path) -> None:
    """Runs all checks, the quickest first, then encodes."""
    from simjax.porting import zoo
    from simjax.runtime import processes
    from simjax.text import caption_cache, encode, encoders, prompts, tokenizer

    survey = prompts.survey(_PROMPTS.value)
    cutter = tokenizer.Tokenizer(zoo.local(_TOKENIZER.value or _ENCODER.value))
    sizes = {"length": _LENGTH.value, "shard": _SHARD.value}
    caption_cache.require_same(folder, encode.identity(survey, cutter, **sizes))
    _require_shared(folder)
    cache = encode.make_cache(
        _PROMPTS.value,
        folder,
        encoders.load_encoder(_ENCODER.value),
        cutter,
        **sizes,
        batch=_BATCH.value,
        command=shlex.join(["python", "-m", "simjax", "encode-prompts", *sys.argv[1:]]),
    )
    if processes.is_first():
        print(f"prompts encoded: {len(cache)}")
        print(f"truncated to {_LENGTH.value} tokens: {cache.truncated}")
        print(f"empty lines skipped: {survey.skipped}")
        print(f"written to {folder}")


def _require_shared(folder: epath.Path) -> None:
    """Makes the folder and checks that all processes share it."""
    from simjax.runtime import processes

    probe = folder / "probe.tmp"

    def write() -> None:
        storage.new_folder(f"{folder}", "--out")
        probe.write_text("")

    processes.by_first(write, "probe is written")
    processes.require_shared(probe.exists(), f"--out={folder}")
    processes.by_first(probe.unlink, "probe is gone")
