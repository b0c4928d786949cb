"""The image's bill of materials, on standard output: run in the Containerfile's stage `describe`.

sbom.py DOCUMENT REPORT STATUS VERSION: what cyclonedx-py found in the serve environment, and beside
that what it cannot know: which wheel of the lock each package came from (pip's report of the
installation), Debian's packages (their entries of dpkg's status), and embedserve's own version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name


def wheels(report: Path) -> dict[str, dict[str, Any]]:
    """Package -> the wheel it came from, as an external reference with its hash."""
    found = {}
    for one in json.loads(report.read_text())["install"]:
        name = canonicalize_name(one["metadata"]["name"])
        download = one["download_info"]
        found[name] = {
            "type": "distribution",
            # Not the download address, which may be the builder's mirror.
            "url": f"https://pypi.org/simple/{name}/",
            "comment": download["url"].rpartition("/")[2],
            "hashes": [{"alg": "SHA-256", "content": download["archive_info"]["hashes"]["sha256"]}],
        }
    return found


def debian(status: Path) -> Iterator[dict[str, Any]]:
    """Each package of Debian's that is in the image."""
    for path in sorted(status.iterdir()):
        entry = HeaderParser().parsestr(path.read_text())
        name, version = entry["Package"], entry["Version"]
        place = f"{quote(name)}@{quote(version)}?arch={entry['Architecture']}&distro=debian-12"
        yield {
            "bom-ref": f"debian/{name}",
            "type": "library",
            "name": name,
            "version": version,
            "description": entry["Description"].splitlines()[0],
            "purl": f"pkg:deb/debian/{place}",
        }


def main(document: Path, report: Path, status: Path, version: str) -> str:
    """Return the document with all that is in the image; it is valid by CycloneDX's schema."""
    found = json.loads(document.read_text())
    found["metadata"]["component"]["version"] = version
    sources = wheels(report)
    for component in found["components"]:
        source = sources[canonicalize_name(component["name"])]
        component.setdefault("externalReferences", []).append(source)
    packages = list(debian(status))
    found["components"] += packages
    found["dependencies"] += [{"ref": package["bom-ref"]} for package in packages]
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"not valid: {problem}")
    return text


if __name__ == "__main__":
    first, second, third, own = sys.argv[1:]
    print(main(Path(first), Path(second), Path(third), own))
