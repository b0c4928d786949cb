"""The figures of docs/cuda.md: python -m tests.gpu.table [REPORT]

REPORT is what run.sh wrote: it is added to tests/gpu/report.json, with the commit it ran at. Each
figure is from the last run that has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu.place import FAMILIES, FP16, FP32, NOMIC, ROOT

REPORT = Path(__file__).with_name("report.json")
PAGE = ROOT / "docs" / "cuda.md"
BEGIN = "<!-- made by python -m tests.gpu.table: begin -->\n"
END = "<!-- made by python -m tests.gpu.table: end -->\n"
Runs = Sequence[Mapping[str, Any]]
KINDS = ("short", "mixed", "long")


def page(text: str, runs: Runs) -> str:
    """The page with its figures as they should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = "\n".join(tables(runs))
    return f"{before}{BEGIN}{made}\n\n{END}{after}"


def tables(runs: Runs) -> Iterator[str]:
    """All of them, each with the run it is from."""
    for made in (
        _throughput,
        _indexing,
        _rivals,
        _latency,
        _passes,
        _parity,
        _families,
        _company,
        _memory,
    ):
        step = made.__name__[1:]
        found, origin = last(runs, step)
        yield from ("", f"{_TITLES[step]} ({origin}):", "")
        yield from made(found)


_TITLES = {
    "throughput": "Texts a second through HTTP, 64 clients, all-MiniLM-L6-v2",
    "indexing": "A file of texts with `embedserve embed`, fp16, texts a second",
    "rivals": "On the same GPU without HTTP, fp16, texts a second",
    "latency": "One short text, p50 / p99, alone and beside eight clients with 256 texts a request",
    "passes": "Milliseconds of a pass, sequences x tokens",
    "parity": "Against the vectors of the CPU's fp32 artifact, 416 texts",
    "families": "Small models of random weights against the CPU's fp32 artifact, 64 mixed texts",
    "company": "Texts of 24 that keep all their bits, and the largest difference of a component",
    "memory": "MB on the device by nvidia-smi",
}


def last(runs: Runs, step: str) -> tuple[dict[str, Any], str]:
    """What the runs found in a step, the later instead of the earlier; their dates and commits."""
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for run in runs:
        for name, value in run["steps"].get(step, {}).get("found", {}).items():
            found[name] = value
            origins[name] = f"{run['date']}, commit {run['commit']}"
    return found, "; ".join(dict.fromkeys(origins.values()))


def _throughput(found: Mapping[str, Any]) -> Iterator[str]:
    loads = list(next(iter(found.values())))
    yield f"| | {' | '.join(loads)} |"
    yield "|---" * (len(loads) + 1) + "|"
    for setting, by_load in found.items():
        cells = (f"{row['texts']:,} (GPU {row['gpu_percent']} %)" for row in by_load.values())
        yield f"| {setting} | {' | '.join(cells)} |"


def _indexing(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| short | mixed | long |"
    yield "|---|---|---|"
    yield f"| {' | '.join(format(found[kind]['texts a second'], ',') for kind in KINDS)} |"


def _rivals(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | short | mixed | long |"
    yield "|---|---|---|---|"
    theirs = found["sentence-transformers, fp16"]
    for what in dict.fromkeys(name.partition(", ")[2] for name in theirs):
        yield _row(f"sentence-transformers, {what}", [theirs[f"{k}, {what}"] for k in KINDS])
    for name in ("bare onnxruntime", "backend in a loop"):
        best = [max(found[f"{name}, fp16, {kind}"].values()) for kind in KINDS]
        yield _row(f"{name}, the best schedule, tokenized before", best)
    for name in ("tokenizing on one core", "tokenizing on all cores"):
        yield _row(name, [found[f"{name}, {kind}"] for kind in KINDS])


def _row(name: str, values: Sequence[int]) -> str:
    return f"| {name} | {' | '.join(f'{value:,}' for value in values)} |"


def _latency(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | alone, ms | beside bulk, ms | bulk's texts a second |"
    yield "|---|---|---|---|"
    for model, row in found.items():
        times = [
            f"{row[k]['p50_ms']:.1f} / {row[k]['p99_ms']:.1f}" for k in ("lone", "beside bulk")
        ]
        yield f"| {model} | {' | '.join(times)} | {row['bulk_texts']:,} |"


def _passes(found: Mapping[str, Any]) -> Iterator[str]:
    measured = {name: row for name, row in found.items() if "1 x 8" in row}
    shapes = list(next(iter(measured.values())))
    yield f"| | {' | '.join(shapes)} |"
    yield "|---" * (len(shapes) + 1) + "|"
    for name, row in measured.items():
        yield f"| {name} | {' | '.join(f'{row[shape]:.2f}' for shape in shapes)} |"


def _parity(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | largest difference | least cosine |"
    yield "|---|---|---|"
    for name, row in found.items():
        yield f"| {name} | {row['largest_difference']:.1e} | {row['least_cosine']:.8f} |"


def _families(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | fp32: largest difference, least cosine | fp16 |"
    yield "|---|---|---|"
    for family in FAMILIES:
        cells = []
        for precision in ("fp32", "fp16"):
            row = found.get(f"{family}-{precision}", "")
            is_measured = isinstance(row, dict)
            cells.append(
                f"{row['largest_difference']:.1e}, {row['least_cosine']:.6f}"
                if is_measured
                else row
            )
        yield f"| {family} | {' | '.join(cells)} |"


def _company(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"| | {FP32} | {FP16} |"
    yield "|---|---|---|"
    for what in dict.fromkeys(name.partition(", ")[2] for name in found):
        rows = [found[f"{model}, {what}"] for model in (FP32, FP16)]
        cells = (f"{r['equal_bits']}, {r['largest_difference']:.0e}" for r in rows)
        yield f"| {what} | {' | '.join(cells)} |"


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    rows = {k: row for k, row in found.items() if k.startswith((FP32, FP16, NOMIC))}
    columns = list(dict.fromkeys(c for row in rows.values() for c in row if c.startswith("after")))
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(str(row.get(column, '')) for column in columns)} |"


def read() -> Runs:
    """The runs that were kept."""
    runs: Runs = json.loads(REPORT.read_text(encoding="utf-8"))["runs"]
    return runs


def add(path: Path) -> None:
    """Keep a run that was made at this commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    run = {"commit": commit.strip(), **json.loads(path.read_text(encoding="utf-8"))}
    runs = [*(read() if REPORT.exists() else []), run]
    REPORT.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


def main(report: str | None = None) -> None:
    """Add a report, and write the page."""
    if report:
        add(Path(report))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
