"""What today's libraries write: native files, and models saved again. In a process of its own."""

from __future__ import annotations

from pathlib import Path

from export.libraries import quiet
from export.steps import Json


def load() -> None:
    """Import what a run needs."""
    with quiet():
        import sentence_transformers  # noqa: F401


def run(job: Json) -> Json:
    """Write job["native"], where a writer is named, and job["resaved"], where a folder is."""
    from sentence_transformers import SentenceTransformer

    from tests.models import native

    published, target = Path(job["published"]), Path(job["native"])
    with quiet():
        if job["writer"] is not None:
            native.write(job["writer"], published, target)
        if job["resaved"] is not None:
            source = published if job["writer"] is None else target
            model = SentenceTransformer(
                str(source),
                device="cpu",
                local_files_only=True,
                model_kwargs={"dtype": "float32"},
            )
            model.save(job["resaved"], create_model_card=False)
    return {}
