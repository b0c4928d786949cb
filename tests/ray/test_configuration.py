"""deploy/ray/serve.yaml: Ray ignores keys that it does not know, so a slip would go unseen."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import yaml
from ray.serve import schema
from ray.serve.config import AutoscalingConfig

from embedserve.cluster.application import Arguments, build
from embedserve.cluster.scaling import QueueWait
from embedserve.config.settings import Settings
from tests.conftest import MINILM, ROOT

CONFIGURATION = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
(APPLICATION,) = CONFIGURATION["applications"]
DEPLOYMENTS = APPLICATION["deployments"]
(SCALED,) = [d["autoscaling_config"] for d in DEPLOYMENTS if "autoscaling_config" in d]


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (CONFIGURATION, schema.ServeDeploySchema),
        (CONFIGURATION["http_options"], schema.HTTPOptionsSchema),
        (CONFIGURATION["logging_config"], schema.LoggingConfig),
        (APPLICATION, schema.ServeApplicationSchema),
        *((deployment, schema.DeploymentSchema) for deployment in DEPLOYMENTS),
        *((d["ray_actor_options"], schema.RayActorOptionsSchema) for d in DEPLOYMENTS),
        (SCALED, AutoscalingConfig),
    ],
)
def test_keys(found: Mapping[str, Any], known: Any) -> None:
    """Each is one that Ray knows, with a value that it takes."""
    fields = getattr(known, "model_fields", None) or known.__fields__
    assert set(found) <= set(fields)
    known(**found)


def test_our_own() -> None:
    """What the file names of this package is there."""
    module, _, name = APPLICATION["import_path"].partition(":")
    assert getattr(import_module(module), name) is build
    module, _, name = SCALED["policy"]["policy_function"].partition(":")
    assert getattr(import_module(module), name) is QueueWait
    QueueWait(**SCALED["policy"]["policy_kwargs"])
    assert set(APPLICATION["args"]) <= set(Arguments.__dataclass_fields__)
    assert set(APPLICATION["args"]["settings"]) <= set(Settings.__dataclass_fields__)
    assert [d["name"] for d in DEPLOYMENTS] == ["front", MINILM]


def test_the_proxy_is_later_than_the_front() -> None:
    """Where a front has the request, it is the one that says 504."""
    assert CONFIGURATION["http_options"]["request_timeout_s"] > Settings().request_timeout + 1
