"""embedserve tune: which lanes and tokens_per_pass are fastest here."""

from __future__ import annotations

from itertools import islice

from embedserve.commands.context import Command, context, present
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped
from embedserve.system import host


def run(
    models: str | None, artifacts: str | None, model: list[str], seconds: float, write: bool
) -> int:
    """Measure which lanes and tokens_per_pass are fastest for a model on this host."""
    configuration, settings, paths = context(models, artifacts, {})
    from embedserve.config import server_table
    from embedserve.diagnose.tuning import measure, recommend, table
    from embedserve.model import loading

    if len(model) > 1 or settings.provider != "cpu" or not 1 <= seconds <= 3600:
        raise StartupError("tune measures one --model, on the CPU, for 1 to 3600 s", Exit.USAGE)
    if write:  # fails before a minute is spent measuring
        server_table.check(paths["models"], {"lanes": 1, "tokens_per_pass": 1})
    names = model or list(islice(present(configuration, paths["artifacts"]), 1))
    (spec,) = loading.choose(configuration.models, names, paths["artifacts"], skip_missing=False)
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


COMMAND = Command(
    run,
    (),
    {
        "--seconds": {"type": float, "default": 60.0, "help": "seconds to take"},
        "--write": {"action": "store_true", "help": "write both to [server] of models.toml"},
    },
)
