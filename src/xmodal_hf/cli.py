"""The console command `xmodal-hf`: each training script by a short name, and where the shipped files are.

    xmodal-hf train-contrastive --recipe demo_scratch_pairs --output_dir outputs/pairs
    accelerate launch --config_file $(xmodal-hf launch-config multi_gpu) \\
        -m xmodal_hf.training_scripts.train_contrastive --recipe cc3m_clip

A command takes the options of its script, in one process. Nothing of torch or transformers is imported before the
options have been read.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .commands import OneLineErrors, run_command
from .shipped import PROGRAM, SCRIPT_OF, Kind, shipped_file, shipped_names

FILES_OF: dict[str, Kind] = {"recipe": "recipe", "launch-config": "launch configuration"}


def _file_help(kind: Kind) -> str:
    return f"Print the path of a {kind} of this package, or the names of all of them."


_COMMANDS = {name: script.help for name, script in SCRIPT_OF.items()} | {
    name: _file_help(kind) for name, kind in FILES_OF.items()
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; default: that of this process's command line."""
    run_command(_run, args)


def _run(args: Sequence[str] | None) -> None:
    args = list(sys.argv[1:] if args is None else args)
    parser = _parser()
    if not args:
        parser.error(f"name a command: `{PROGRAM} --help` lists them")
    command = parser.parse_args(args[:1]).command
    if command not in _COMMANDS:
        nearest = difflib.get_close_matches(command, _COMMANDS, n=1, cutoff=0)
        parser.error(f"unknown command {command!r}: did you mean {nearest[0]}?")
    if command in SCRIPT_OF:
        run_script(command, args[1:])
    else:
        show_files(command, args[1:])


def run_script(command: str, args: Sequence[str]) -> None:
    """Run the main function of a script with its own options; its messages name the command."""
    before, sys.argv = sys.argv, [f"{PROGRAM} {command}", *args]
    try:
        module = importlib.import_module(f"{__package__}.training_scripts.{SCRIPT_OF[command].module}")
        run_command(module.main, args)
    finally:
        sys.argv = before  # another call in the same process has its own name


def show_files(command: str, args: Sequence[str]) -> None:
    """Print the path of a shipped file, or the names of all of its kind."""
    kind = FILES_OF[command]
    parser = OneLineErrors(prog=f"{PROGRAM} {command}", description=_file_help(kind))
    parser.add_argument("name", nargs="?", help="Name of the file. Default: print all names.")
    name = parser.parse_args(args).name
    try:
        print("\n".join(shipped_names(kind)) if name is None else shipped_file(kind, name))
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the first argument; what follows belongs to the command that it names."""
    parser = OneLineErrors(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Contrastive image-text and audio-text models whose language encoder is a sentence encoder too.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<19}{text}" for name, text in _COMMANDS.items())
        + f"\n\n`{PROGRAM} COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", help="One of the commands below.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser
