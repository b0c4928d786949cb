"""Programs that some tests need, of Debian's packages: .ci/run installs them."""

from __future__ import annotations

import os
import shutil

import pytest

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(*names: str) -> str | None:
    """The path of the first of these programs that is installed."""
    found = (shutil.which(name, path=f"{os.environ['PATH']}:{PATH}") for name in names)
    return next(filter(None, found), None)


def need(*names: str, package: str, is_module: bool = False) -> str:
    """The path of the first that is installed; else the test is skipped, or fails with CI=true.

    `is_module`: whether a whole module is skipped, at its import.
    """
    if found := find(*names):
        return found
    message = f"{' or '.join(names)} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message, allow_module_level=is_module)
