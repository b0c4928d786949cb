"""embedserve verify: the checks of a server's start, without serving."""

from __future__ import annotations

from embedserve.commands.context import Command, context


def run(models: str | None, artifacts: str | None, model: list[str], **flags: str | None) -> int:
    """Check digests, golden vectors and aliases of every artifact, without serving."""
    configuration, settings, paths = context(models, artifacts, flags)
    from embedserve.model import loading
    from embedserve.model.registry import ModelRegistry

    specs = loading.choose(configuration.models, model, paths["artifacts"], settings.skip_missing)
    for spec in specs:
        directory = paths["artifacts"] / spec.name
        loaded, difference = loading.load_model(spec, directory, settings.provider)
        ModelRegistry([loaded], configuration.aliases.values())  # checks its aliases
        print(
            f"{spec.name}: ok, golden vectors within {difference:.1e} on {settings.provider}, "
            f"fingerprint {loaded.manifest.fingerprint}"
        )
    return 0


COMMAND = Command(run, ("provider", "skip_missing"))
