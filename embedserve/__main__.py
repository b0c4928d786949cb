"""`python -m embedserve` is the `embedserve` command."""

import sys

# Python puts the working directory first in sys.path. It stays there only if it holds this package,
# as in a checkout. This comes before every other import.
_is_started = __name__ == "__main__" and not sys.flags.safe_path
if _is_started and sys.path[0] != __file__.rpartition("/embedserve/")[0]:
    del sys.path[0]

from embedserve.cli import main  # noqa: E402  # after sys.path is set

if __name__ == "__main__":
    main()
