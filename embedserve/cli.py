"""embedserve serve | embed | health | verify | doctor | tune."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from embedserve import __version__, config, host, logs, process
from embedserve.config import Config
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped
from embedserve.keys import Keys, take_from_environment
from embedserve.settings import ENVIRONMENT_PREFIX, PATHS, Settings, merge

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    process.prepare()
    namespace = vars(_parser().parse_args(arguments))
    try:
        status = namespace.pop("command")(**namespace)
        sys.stdout.flush()
        sys.exit(status)
    except StartupError as error:
        logging.shutdown()  # what was logged stands before it
        print(f"embedserve: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:  # who reads a report has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def serve(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Load models, prove them, serve."""
    # Process 1 of a container ignores what it does not handle; once it serves, it drains.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from_environment = take_from_environment()
    configuration, settings, paths = _settings(models, artifacts, flags)
    logs.configure(settings)
    keys = Keys(Path(settings.api_keys_file) if settings.api_keys_file else None, from_environment)
    if settings.api_keys_file:
        # From here on, and not only once the loop runs: unhandled, SIGHUP ends a process.
        signal.signal(signal.SIGHUP, lambda *_: keys.reload())
    # Imported here, so that a wrong flag and --version need no numpy and no onnxruntime.
    from embedserve import footprint, parallelism, registry, server
    from embedserve.app import create_app
    from embedserve.backend import PROVIDERS
    from embedserve.metrics import Metrics
    from embedserve.readiness import Readiness

    listener = server.bind(settings)
    traced = _tracing(settings)
    specs = registry.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    aliases = [a for a in configuration.aliases.values() if not model or a.model in model]
    found = host.read()
    cores = found.cores.value
    loaded = registry.load(specs, aliases, paths["artifacts"], settings.provider, cores)
    lanes = parallelism.lanes(settings, cores)
    tokens = parallelism.tokens_per_pass(settings)
    manifests = [model.manifest for model in loaded]
    memory = footprint.estimate(
        host.resident(),
        manifests,
        lanes,
        tokens,
        settings,
        takes_ids=loaded.takes_ids,
        on_device=PROVIDERS[settings.provider].device is not None,
        step_characters=max(model.tokenizer.step_characters for model in loaded),
    )
    log.info("%s", memory)
    if advice := memory.advice(found.memory):
        log.warning("%s", advice)
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
    readiness, metrics = Readiness(), Metrics()
    metrics.fix("memory_bound_bytes", memory.most)
    metrics.fix("memory_limit_bytes", found.memory.value if found.memory else math.inf)
    app = traced(create_app(settings, loaded, lanes, keys, readiness, metrics))
    server.run(app, settings, listener, readiness, metrics)
    return 0


def health(
    models: str | None, artifacts: str | None, model: list[str], seconds: float, **flags: str | None
) -> int:
    """Ask the server of these settings whether it is ready: 0, or 1 with the reason."""
    _, settings, _ = _settings(models, artifacts, flags)
    from embedserve.health import ask

    ready, said = ask(settings.host, settings.port, seconds)
    print(escaped(said), file=sys.stdout if ready else sys.stderr)
    return 0 if ready else 1


def embed(
    models: str | None,
    artifacts: str | None,
    model: list[str],
    provider: str | None,
    lanes: str | None,
    tokens_per_pass: str | None,
    **options: Any,
) -> int:
    """Embed a file of texts into a file of vectors, without a server; killed, it goes on."""
    flags = {"provider": provider, "lanes": lanes, "tokens_per_pass": tokens_per_pass}
    configuration, settings, paths = _settings(models, artifacts, flags)
    from embedserve import registry
    from embedserve.bulk import command

    if len(model) > 1:
        raise StartupError("embed takes one --model", Exit.USAGE)
    names = model or list(_present(configuration, paths["artifacts"]))
    if len(names) > 1:
        raise StartupError(f"name one --model of {', '.join(names)}", Exit.USAGE)
    (spec,) = registry.choose(
        configuration.models,
        names or list(islice(configuration.models, 1)),
        paths["artifacts"],
        skip_missing=False,
    )
    return command.embed(command.options(**options), spec, paths["artifacts"] / spec.name, settings)


def verify(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Check digests, golden vectors and aliases of every artifact, without serving."""
    configuration, settings, paths = _settings(models, artifacts, flags)
    from embedserve import registry

    specs = registry.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    for spec in specs:
        directory = paths["artifacts"] / spec.name
        loaded, difference = registry.load_model(spec, directory, settings.provider)
        registry.ModelRegistry([loaded], configuration.aliases.values())  # checks its aliases
        print(
            f"{spec.name}: ok, golden vectors within {difference:.1e} on {settings.provider}, "
            f"fingerprint {loaded.manifest.fingerprint}"
        )
    return 0


def doctor(
    models: str | None, artifacts: str | None, model: list[str], json: bool, **flags: str | None
) -> int:
    """Say what this process may use, what a server would find, and what could be better."""
    from embedserve.doctor import examine
    from embedserve.report import as_json, as_text

    report = examine(_paths(models, artifacts), model, _set(flags))
    print(as_json(report) if json else as_text(report))
    return report.status


def tune(
    models: str | None, artifacts: str | None, model: list[str], seconds: float, write: bool
) -> int:
    """Measure which lanes and tokens_per_pass are fastest on this host and model."""
    configuration, settings, paths = _settings(models, artifacts, {})
    from embedserve import registry, server_table
    from embedserve.tune import measure, recommend, table

    if len(model) > 1 or settings.provider != "cpu" or not 1 <= seconds <= 3600:
        raise StartupError("tune measures one --model, on the CPU, for 1 to 3600 s", Exit.USAGE)
    if write:  # what cannot be written is said before a minute is spent
        server_table.check(paths["models"], {"lanes": 1, "tokens_per_pass": 1})
    names = model or list(islice(_present(configuration, paths["artifacts"]), 1))
    (spec,) = registry.choose(configuration.models, names, paths["artifacts"], skip_missing=False)
    cores = host.read().cores
    print(f"{spec.name} on {cores.value} cores ({cores.origin}), {seconds:g} s", flush=True)
    turns = measure(spec, paths["artifacts"] / spec.name, cores.value, seconds)
    best = recommend(turns)
    values = {"lanes": best.lanes, "tokens_per_pass": best.tokens_per_pass}
    if write:
        server_table.write(paths["models"], values)
    lines = [f"{key} = {value}" for key, value in values.items()]
    place = escaped(f"{'' if write else 'not '}written to [server] of {paths['models']}")
    print("", table(turns, cores.value), "", *lines, place, sep="\n")
    return 0


def _tracing(settings: Settings) -> Callable[[Any], Any]:
    """What puts spans around an application: nothing, and nothing is imported, unless asked for."""
    if not settings.tracing:
        return lambda app: app
    from embedserve import tracing

    return partial(tracing.Traced, tracing.provider(), settings.drain_seconds)


def _settings(
    models: str | None, artifacts: str | None, flags: Mapping[str, str | None]
) -> tuple[Config, Settings, dict[str, Path]]:
    paths = _paths(models, artifacts)
    configuration = config.read(paths["models"])
    settings = merge(configuration, os.environ, _set(flags), paths["models"])
    return configuration, settings, paths


def _paths(models: str | None, artifacts: str | None) -> dict[str, Path]:
    given = {"models": models, "artifacts": artifacts}
    return {
        name: Path(given[name] or os.environ.get(ENVIRONMENT_PREFIX + name.upper()) or default)
        for name, default in PATHS.items()
    }


def _present(configuration: Config, artifacts: Path) -> Iterator[str]:
    """The models that have an artifact."""
    from embedserve import artifact

    return (name for name in configuration.models if artifact.exists(artifacts / name))


def _set(flags: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in flags.items() if value is not None}


# Each command, and the settings that are flags of it; None: all.
_COMMANDS: Mapping[str, tuple[Callable[..., int], Sequence[str] | None]] = {
    "serve": (serve, None),
    "health": (health, ("host", "port")),
    "embed": (embed, ("provider", "lanes", "tokens_per_pass")),
    "verify": (verify, ("provider", "skip_missing")),
    "doctor": (doctor, None),
    "tune": (tune, ()),
}
# What is a flag of one command alone.
_OPTIONS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "health": {
        "--seconds": {"type": float, "default": 5.0, "help": "time to answer; default: 5"},
    },
    "embed": {
        "source": {"metavar": "INPUT", "help": "texts: .jsonl, .csv, .tsv or .parquet"},
        "target": {"metavar": "OUTPUT", "help": "vectors: .parquet, .jsonl or .npy"},
        "--text-column": {"default": "text", "help": "where the text stands; default: text"},
        "--vector-column": {
            "default": "embedding",
            "help": "what the vector is called; default: embedding",
        },
        "--keep": {
            "action": "append",
            "metavar": "COLUMN",
            "help": "keep this column beside the vector; may be repeated; default: all",
        },
        "--drop": {
            "action": "append",
            "default": [],
            "metavar": "COLUMN",
            "help": "do not keep this column; may be repeated",
        },
        "--prompt-name": {"metavar": "NAME", "help": "one of the model's prompts, for every text"},
        "--dimensions": {"type": int, "help": "cut and scale vectors, for Matryoshka models"},
        "--dtype": {
            "choices": ("float32", "float16"),
            "default": "float32",
            "help": "of the numbers; default: float32",
        },
        "--truncate": {
            "choices": ("end", "start", "error"),
            "default": "end",
            "help": "which end of a longer text is cut, or that it is a bad row; default: end",
        },
        "--on-error": {
            "choices": ("skip", "null", "stop"),
            "help": "leave a bad row out, keep it without a vector, or end; default: skip, and "
            "null for .npy, whose rows are known by their place",
        },
        "--chunk-rows": {
            "type": int,
            "default": 4096,
            "metavar": "ROWS",
            "help": "rows of what is finished at a time; default: 4096",
        },
        "--overwrite": {
            "action": "store_true",
            "help": "replace an OUTPUT that is there, and forget what another job finished of it",
        },
        "--ray": {
            "metavar": "ADDRESS",
            "help": "on the nodes of this Ray cluster: HOST:PORT, or auto",
        },
        "--artifacts-by": {
            "choices": ("object-store", "working-dir", "path"),
            "default": "object-store",
            "help": "how the artifact reaches the nodes; default: object-store",
        },
    },
    "doctor": {"--json": {"action": "store_true", "help": "the report as JSON"}},
    "tune": {
        "--seconds": {"type": float, "default": 60.0, "help": "time to take; default: 60"},
        "--write": {"action": "store_true", "help": "put the two into [server] of models.toml"},
    },
}


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 on a wrong command line; sysexits says 64."""

    def error(self, message: str) -> None:  # type: ignore[override]  # exits, as NoReturn does
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {escaped(message)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="embedserve", description="Sentence embeddings over HTTP.")
    parser.add_argument("--version", action="version", version=f"embedserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(_COMMANDS))
    for command, (function, settings) in _COMMANDS.items():
        sub = commands.add_parser(command, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(command=function)
        for flag, options in _OPTIONS.get(command, {}).items():
            sub.add_argument(flag, **options)
        for name, default in PATHS.items():
            sub.add_argument(f"--{name}", help=f"default: {default}", metavar="PATH")
        sub.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="NAME",
            help="only this model; may be repeated",
        )
        _add_settings(sub, settings)
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
