"""Asks the hub before a download: which commit, which files, and what the small ones say."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedserve.errors import Exit, StartupError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 20.0  # for an answer about a model


@dataclass(frozen=True, slots=True)
class Listing:
    """A model at a commit: the name that the hub gives it, and path -> sha256, None if unknown."""

    repository: str
    commit: str
    files: Mapping[str, str | None]


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def look_up(repository: str, revision: str | None) -> Listing:
    """Find the commit of a branch, tag or commit (none: the newest), and its files.

    StartupError 69: no hub, no such model or revision, or no access to it.
    """
    from huggingface_hub import HfApi

    hub = endpoint()
    with _translated(repository, revision):
        info = HfApi(endpoint=hub).model_info(
            repository, revision=revision, files_metadata=True, timeout=_SECONDS
        )
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise _unavailable(
            f"{repository}: the hub gives commit {commit!r}; expected 40 hexadecimal digits"
        )
    files = {f.rfilename: f.lfs.sha256 if f.lfs else None for f in info.siblings or ()}
    return Listing(info.id or repository, commit, MappingProxyType(files))


def read_json(listing: Listing, name: str) -> Any:
    """Fetch one small file of the listing, into the hub's own cache, and read it as JSON."""
    from huggingface_hub import hf_hub_download

    with _translated(listing.repository, listing.commit):
        path = hf_hub_download(listing.repository, name, revision=listing.commit)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        where = f"{listing.repository}: {name}"
        raise StartupError(f"{where}: cannot be read as JSON: {error}", Exit.DATAERR) from error


@contextlib.contextmanager
def _translated(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the hub client's errors into one line each."""
    import httpx2
    from huggingface_hub import errors

    page = f"{endpoint()}/{repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise _unavailable(
            f"{repository}: is gated: accept its terms at {page}, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise _unavailable(
            f"{repository}: {endpoint()} has no such model, or it is private: set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise _unavailable(
            f"{repository}: no revision {revision}; a branch, a tag or a commit is accepted"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _unavailable(f"{repository}: {endpoint()} refused: {_first_line(error)}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise _unavailable(
            f"{repository}: {endpoint()} cannot be reached: {_first_line(error)}; "
            "give the files with --from DIR"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unavailable(message: str) -> StartupError:
    return StartupError(message, Exit.UNAVAILABLE)
