"""All families by model_type."""

from __future__ import annotations

from collections.abc import Mapping

from export.families import decoder
from export.families.family import Family

FAMILIES: Mapping[str, Family] = {**decoder.FAMILIES}
