"""One step in this process: python -m tests.gpu.step NAME FOUND LOG"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from tests.gpu.place import Place
from tests.gpu.results import Results


def main(name: str, found: str, log: str) -> None:
    """Run it; the traceback of what it raises goes to the results."""
    results = Results(Path(found))
    try:
        module = importlib.import_module(f"tests.gpu.steps.{name}")
        module.run(Place.from_environment(), results, Path(log))
    except Exception:
        results.add(error=traceback.format_exc()[-3000:])
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
