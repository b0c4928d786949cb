"""`python -m embedserve` is the `embedserve` command."""

import sys

# Python puts the working directory first where it looks for modules: only where this package is in
# it, as in a checkout, does it stay. Nothing else is imported before.
_is_started = __name__ == "__main__" and not sys.flags.safe_path
if _is_started and sys.path[0] != __file__.rpartition("/embedserve/")[0]:
    del sys.path[0]

from embedserve.cli import main  # noqa: E402  # the path first

if __name__ == "__main__":
    main()
