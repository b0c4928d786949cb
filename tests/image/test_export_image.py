"""The export tool's image makes an artifact on a volume; the server's image serves it."""

from __future__ import annotations

from pathlib import Path

from tests.image.containers import runner
from tests.image.environment import IMAGE, RUN_FLAGS
from tests.image.test_image import MODEL, assert_golden, until_ready


def test_export_then_serve(tmp_path: Path) -> None:
    """Nothing of the host has a part in it but the volume."""
    out, scratch = tmp_path / "artifacts", tmp_path / "bundle"
    out.mkdir()
    scratch.mkdir()
    engine = runner()
    said = engine.run(f"{IMAGE}-export", f"{out}:/build/artifacts", RUN_FLAGS, MODEL)
    print(said)
    assert (out / MODEL / "manifest.json").is_file()
    with engine.start(IMAGE, out, scratch) as container:
        until_ready(container)
        assert_golden(container, out / MODEL)
