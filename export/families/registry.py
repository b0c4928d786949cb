"""All families by model_type."""

from __future__ import annotations

from collections.abc import Mapping

from export.families import (
    albert,
    bert,
    deberta_v2,
    decoder,
    gemma,
    gte,
    jina_v3,
    modernbert,
    mpnet,
    nomic_bert,
    t5,
)
from export.families.family import Family

FAMILIES: Mapping[str, Family] = {
    **bert.FAMILIES,
    **mpnet.FAMILIES,
    **albert.FAMILIES,
    **deberta_v2.FAMILIES,
    **modernbert.FAMILIES,
    **nomic_bert.FAMILIES,
    **gte.FAMILIES,
    **jina_v3.FAMILIES,
    **t5.FAMILIES,
    **decoder.FAMILIES,
    **gemma.FAMILIES,
}
