"""`python -m export`."""

import sys

# As in embedserve/__main__.py: import nothing from a working directory that is not the project.
_is_started = __name__ == "__main__" and not sys.flags.safe_path
if _is_started and sys.path[0] != __file__.rpartition("/export/")[0]:
    del sys.path[0]

from export.cli import main  # noqa: E402  # after the path

if __name__ == "__main__":
    sys.exit(main())
