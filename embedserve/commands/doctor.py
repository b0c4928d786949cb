"""embedserve doctor: what this process may use, and what to improve."""

from __future__ import annotations

from embedserve.commands.context import Command, given, paths


def run(
    models: str | None, artifacts: str | None, model: list[str], json: bool, **flags: str | None
) -> int:
    """Report what this process may use, what a server would find, and what to improve."""
    from embedserve.diagnose.examination import examine
    from embedserve.diagnose.report import as_json, as_text

    report = examine(paths(models, artifacts), model, given(flags))
    print(as_json(report) if json else as_text(report))
    return report.status


COMMAND = Command(run, None, {"--json": {"action": "store_true", "help": "the report as JSON"}})
