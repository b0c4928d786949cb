"""The command line: the commands and their flags."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from embedserve import __version__
from embedserve.commands import doctor, embed, health, serve, tune, verify
from embedserve.commands.context import Command
from embedserve.config.settings import PATHS, Settings
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped
from embedserve.system import process

COMMANDS: Mapping[str, Command] = {
    "serve": serve.COMMAND,
    "health": health.COMMAND,
    "embed": embed.COMMAND,
    "verify": verify.COMMAND,
    "doctor": doctor.COMMAND,
    "tune": tune.COMMAND,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    process.prepare()
    namespace = vars(parser().parse_args(arguments))
    try:
        status = namespace.pop("command")(**namespace)
        sys.stdout.flush()
        sys.exit(status)
    except StartupError as error:
        logging.shutdown()  # writes the log lines before the error
        print(f"embedserve: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:  # the reader of a report closed the pipe (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 on a wrong command line; sysexits says 64."""

    def error(self, message: str) -> None:  # type: ignore[override]  # exits, as NoReturn does
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {escaped(message)}\n")


def parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="embedserve", description="Sentence embeddings over HTTP.")
    parser.add_argument("--version", action="version", version=f"embedserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        text = command.run.__doc__
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command.run)
        for flag, options in command.options.items():
            sub.add_argument(flag, **_with_default(options))
        for path, default in PATHS.items():
            sub.add_argument(f"--{path}", help=f"default: {default}", metavar="PATH")
        sub.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="NAME",
            help="only this model; may be repeated",
        )
        _add_settings(sub, command.settings)
    return parser


def _with_default(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same options, with the default in the help."""
    return {**options, "help": _help(options["help"], options.get("default"))}


def _help(text: str, default: object) -> str:
    """A flag's help with its default, where it has one."""
    has_none = isinstance(default, bool) or default in (None, "", (), [])
    return text if has_none else f"{text}; default: {default}"


def _add_settings(parser: argparse.ArgumentParser, only: Sequence[str] | None) -> None:
    for setting in fields(Settings):
        if only is not None and setting.name not in only:
            continue
        flag = "--" + setting.name.replace("_", "-")
        text = setting.metadata["help"].replace("%", "%%")
        if setting.default is False:
            parser.add_argument(flag, action="store_const", const="true", help=text)
        elif setting.default is True:
            no = "--no-" + flag.removeprefix("--")
            parser.add_argument(
                no, dest=setting.name, action="store_const", const="false", help=f"do not {text}"
            )
        else:
            said = _help(text, setting.default)
            parser.add_argument(flag, metavar=setting.name.upper(), help=said)
