"""python -m tests.attack [CONNECTIONS [SECONDS [NAME…]]]: a line of figures for each form."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.attack.forms import FORMS
from tests.attack.watch import attack, attacked


def main() -> None:
    """Print the table."""
    connections, seconds = (float(word) for word in (*sys.argv[1:3], "300", "3")[:2])
    names = sys.argv[3:] or list(FORMS)
    with TemporaryDirectory() as folder:
        for name in names:
            with attacked(Path(folder)) as server:
                print(
                    f"{name}: {attack(server, FORMS[name], int(connections), seconds)}", flush=True
                )


if __name__ == "__main__":
    main()
