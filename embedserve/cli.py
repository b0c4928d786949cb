"""embedserve serve | verify."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from embedserve import __version__, config
from embedserve.config import Config, Settings
from embedserve.errors import Exit, StartupError

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
    configuration, settings, paths = _settings(models, artifacts, flags)
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Imported here, so that a wrong flag and --version need no numpy and no onnxruntime.
    from embedserve import models as registry
    from embedserve import server
    from embedserve.app import create_app

    listener = server.bind(settings)
    specs = registry.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    loaded = registry.load(specs, paths["artifacts"], settings.provider)
    lanes = settings.lanes or len(os.sched_getaffinity(0))
    log.info(
        "serving %s on http://%s:%s with %s lanes",
        ", ".join(m.name for m in loaded),
        settings.host,
        listener.getsockname()[1],
        lanes,
    )
    server.run(create_app(settings, loaded, lanes), settings, listener)
    return 0


def verify(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Check digests and golden vectors of every artifact, without serving."""
    configuration, settings, paths = _settings(models, artifacts, flags)
    from embedserve import artifact
    from embedserve import models as registry

    specs = registry.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    for spec in specs:
        directory = paths["artifacts"] / spec.name
        loaded = registry.load_model(spec, directory, settings.provider)
        difference = registry.check_golden(loaded, artifact.read_golden(directory), directory)
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
        name: Path(
            given[name] or os.environ.get(config.ENVIRONMENT_PREFIX + name.upper()) or default
        )
        for name, default in config.PATHS.items()
    }
    configuration = config.read(paths["models"])
    set_flags = {name: value for name, value in flags.items() if value is not None}
    settings = config.settings(configuration, os.environ, set_flags, paths["models"])
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
        for name, default in config.PATHS.items():
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
        else:
            parser.add_argument(flag, metavar=setting.name.upper(), help=text)
