"""embedserve serve | verify."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from embedserve import __version__, config, logs
from embedserve.config import Config
from embedserve.errors import Exit, StartupError
from embedserve.keys import Keys, take_from_environment
from embedserve.settings import ENVIRONMENT_PREFIX, PATHS, Settings, merge

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    # Lanes and the tokenizer's thread share the cores; rayon's own pool would fight them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    namespace = vars(_parser().parse_args(arguments))
    try:
        sys.exit(namespace.pop("command")(**namespace))
    except StartupError as error:
        print(f"embedserve: {error}", file=sys.stderr)
        sys.exit(error.status)


def serve(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Load models, prove them, serve."""
    from_environment = take_from_environment()
    configuration, settings, paths = _settings(models, artifacts, flags)
    logs.configure(settings)
    keys = Keys(Path(settings.api_keys_file) if settings.api_keys_file else None, from_environment)
    if settings.api_keys_file:
        # From here on, and not only once the loop runs: unhandled, SIGHUP ends a process.
        signal.signal(signal.SIGHUP, lambda *_: keys.reload())
    # Imported here, so that a wrong flag and --version need no numpy and no onnxruntime.
    from embedserve import registry, server
    from embedserve.app import create_app

    listener = server.bind(settings)
    specs = registry.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    aliases = [a for a in configuration.aliases.values() if not model or a.model in model]
    cores = len(os.sched_getaffinity(0))
    loaded = registry.load(specs, aliases, paths["artifacts"], settings.provider, cores)
    lanes = settings.lanes or cores
    if not keys and not server.is_loopback(settings.host):
        log.warning(
            "ANYONE WHO REACHES %s:%s CAN USE THIS SERVER: it listens on a public address and no "
            "API keys are set (api_keys_file, or EMBEDSERVE_API_KEYS)",
            settings.host,
            listener.getsockname()[1],
        )
    log.info(
        "serving %s on http://%s:%s with %s lanes",
        ", ".join(loaded.names()),
        settings.host,
        listener.getsockname()[1],
        lanes,
    )
    server.run(create_app(settings, loaded, lanes, keys), settings, listener)
    return 0


def verify(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Check digests and golden vectors of every artifact, without serving."""
    configuration, settings, paths = _settings(models, artifacts, flags)
    from embedserve import registry

    specs = registry.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    for spec in specs:
        directory = paths["artifacts"] / spec.name
        loaded, difference = registry.load_model(spec, directory, settings.provider)
        print(
            f"{spec.name}: ok, golden vectors within {difference:.1e} on {settings.provider}, "
            f"fingerprint {loaded.manifest.fingerprint}"
        )
    return 0


def _settings(
    models: str | None, artifacts: str | None, flags: dict[str, str | None]
) -> tuple[Config, Settings, dict[str, Path]]:
    given = {"models": models, "artifacts": artifacts}
    paths = {
        name: Path(given[name] or os.environ.get(ENVIRONMENT_PREFIX + name.upper()) or default)
        for name, default in PATHS.items()
    }
    configuration = config.read(paths["models"])
    set_flags = {name: value for name, value in flags.items() if value is not None}
    settings = merge(configuration, os.environ, set_flags, paths["models"])
    return configuration, settings, paths


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 on a wrong command line; sysexits says 64."""

    def error(self, message: str) -> None:  # type: ignore[override]  # exits, as NoReturn does
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="embedserve", description="Sentence embeddings over HTTP.")
    parser.add_argument("--version", action="version", version=f"embedserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar="serve | verify")
    for command, function in (("serve", serve), ("verify", verify)):
        sub = commands.add_parser(command, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(command=function)
        for name, default in PATHS.items():
            sub.add_argument(f"--{name}", help=f"default: {default}", metavar="PATH")
        sub.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="NAME",
            help="only this model; may be repeated",
        )
        _add_settings(sub, ("provider", "skip_missing") if command == "verify" else None)
    return parser


def _add_settings(parser: argparse.ArgumentParser, only: Sequence[str] | None) -> None:
    for setting in fields(Settings):
        if only is not None and setting.name not in only:
            continue
        flag = "--" + setting.name.replace("_", "-")
        text = f"{setting.metadata['help']}; default: {setting.default}".replace("%", "%%")
        if setting.default is False:
            parser.add_argument(flag, action="store_const", const="true", help=text)
        elif setting.default is True:
            no = "--no-" + flag.removeprefix("--")
            parser.add_argument(
                no, dest=setting.name, action="store_const", const="false", help=f"do not {text}"
            )
        else:
            parser.add_argument(flag, metavar=setting.name.upper(), help=text)
