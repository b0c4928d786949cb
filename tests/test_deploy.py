"""The Kubernetes manifests: valid, one with another, and with what the server does."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has none
import pytest
import yaml
from prometheus_client import Gauge

from embedserve import artifact
from embedserve.api.app import LANES_GRACE
from embedserve.api.endpoints import Service
from embedserve.api.routes import routes
from embedserve.config import models_toml, settings
from embedserve.config.settings import Settings
from embedserve.diagnose import footprint
from embedserve.errors import StartupError
from embedserve.http import server
from embedserve.http.readiness import Readiness
from embedserve.metrics import METRICS, Metrics
from embedserve.model.providers import PROVIDERS
from embedserve.model.registry import ModelRegistry
from tests import programs
from tests.conftest import MINILM, ROOT, Server

Json = dict[str, Any]
DEPLOY = ROOT / "deploy" / "kubernetes"
COMPONENTS = DEPLOY / "components"
OVERLAYS = sorted(path.parent for path in DEPLOY.glob("overlays/*/kustomization.yaml"))
# preStop's sleep is of 1.30; the other is the newest whose schemas there are.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
MODELS = DEPLOY / "base" / "models.toml"
# No object of the cluster: values of a chart.
VALUES = COMPONENTS / "autoscaling" / "prometheus-adapter.yaml"
EXIT_SECONDS = 5  # from the end of the drain to the end of the process, on a slow node
UNITS = {"": 1, "Mi": 2**20, "Gi": 2**30}


def load(path: Path) -> Json:
    """The one document of a file."""
    document: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


KUSTOMIZATIONS = {path.parent: load(path) for path in sorted(DEPLOY.rglob("kustomization.yaml"))}
RESOURCES = {
    folder / name: load(folder / name)
    for folder, listed in KUSTOMIZATIONS.items()
    for name in listed.get("resources", ())
    if (folder / name).is_file()
}
PATCHES = [
    (folder, patch)
    for folder, listed in KUSTOMIZATIONS.items()
    for patch in listed.get("patches", ())
]
OWN = [path for path, found in RESOURCES.items() if found["kind"] != "ServiceMonitor"]


def only(kind: str, name: str = "embedserve") -> Json:
    """The resource of a kind and name."""
    found = [r for r in RESOURCES.values() if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1
    return found[0]


DEPLOYMENT = only("Deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
JOB = only("Job", "embedserve-export")
JOB_POD = JOB["spec"]["template"]["spec"]
MONITOR = only("ServiceMonitor")
PORT = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


def environment(container: Json) -> dict[str, str]:
    """Its variables."""
    return {variable["name"]: variable["value"] for variable in container["env"]}


def in_force(*more: Json) -> Settings:
    """The server's settings with the Deployment's variables, and a component's."""
    variables = environment(CONTAINER)
    for container in more:
        variables |= environment(container)
    return settings.merge(models_toml.read(MODELS), variables, {}, MODELS)


def quantity(text: str) -> int:
    """Bytes of a quantity of memory."""
    found = re.fullmatch(r"(\d+)(Mi|Gi|)", text)
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]


def matches(selector: Json, pod_template: Json) -> bool:
    """Whether a selector of labels takes the Pods of a template."""
    labels = pod_template["metadata"]["labels"]
    return bool(selector["matchLabels"].items() <= labels.items())


def patch_file(component: str, name: str) -> Json:
    """A patch of a component."""
    return load(COMPONENTS / component / name)


def patched(component: str) -> Json:
    """The container in a component's patch of the Deployment."""
    spec = patch_file(component, "deployment.yaml")["spec"]["template"]["spec"]
    container: Json = spec["containers"][0]
    assert container["name"] == CONTAINER["name"]
    return container


Build = Callable[[Path], list[Json]]


@pytest.fixture(scope="session")
def build() -> Build:
    """A kustomization, built."""
    program = programs.need("kustomize", "kubectl", package="kubectl (1.25 or newer)")
    command = [program, "kustomize" if Path(program).name == "kubectl" else "build"]

    def run(folder: Path) -> list[Json]:
        done = subprocess.run(
            [*command, folder], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return run


# -- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", OWN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_valid(path: Path, version: str) -> None:
    """Each resource is what the API's schema says, without a field more."""
    kubernetes_validate.validate(RESOURCES[path], version, strict=True)


def test_schema_is_strict() -> None:
    """A field that does not exist is found: the test above can fail."""
    wrong = {**only("Service"), "spec": {**only("Service")["spec"], "port": 5000}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kustomizations_list_every_file() -> None:
    """Each file is named by the kustomization beside it, and each name is a file or a folder."""
    for folder, listed in KUSTOMIZATIONS.items():
        generated = [f for g in listed.get("configMapGenerator", ()) for f in g["files"]]
        names = {*listed.get("resources", ()), *listed.get("components", ()), *generated}
        names |= {patch["path"] for patch in listed.get("patches", ()) if "path" in patch}
        assert all((folder / name).exists() for name in names)
        here = {path.name for path in folder.iterdir() if path.is_file()}
        files = {name for name in names if (folder / name).is_file()}
        assert here - {"kustomization.yaml"} - {VALUES.name} == files
    assert VALUES.is_file()


def test_kinds_of_kustomizations() -> None:
    """What lies in components/ is a Component, the rest a Kustomization."""
    for folder, listed in KUSTOMIZATIONS.items():
        kind = "Component" if folder.parent == COMPONENTS else "Kustomization"
        version = {"Component": "v1alpha1", "Kustomization": "v1beta1"}[kind]
        assert (listed["kind"], listed["apiVersion"].split("/")[1]) == (kind, version)


@pytest.mark.parametrize(
    ("folder", "patch"), PATCHES, ids=[f"{f.name}-{i}" for i, (f, _) in enumerate(PATCHES)]
)
def test_patches_have_a_target(folder: Path, patch: Json) -> None:
    """A patch changes a resource that is there, and removes what is there."""
    if "path" in patch:
        changed = load(folder / patch["path"])
        assert changed["apiVersion"] == only(changed["kind"])["apiVersion"]
        return
    target = only(patch["target"]["kind"], patch["target"]["name"])
    for step in yaml.safe_load(patch["patch"]):
        place: Any = target
        for part in step["path"].strip("/").split("/"):
            place = place[part]


def test_images() -> None:
    """What an image is renamed from is the image of a container, or a component's new name."""
    used = {CONTAINER["image"], JOB_POD["containers"][0]["image"]}
    renamed = [image for listed in KUSTOMIZATIONS.values() for image in listed.get("images", ())]
    known = used | {image["newName"] for image in renamed}
    assert renamed
    assert {image["name"] for image in renamed} <= known


# -- one with another --------------------------------------------------------------------------


def test_selectors() -> None:
    """Everything that selects the server's Pods does, and the Job's Pods are nobody's."""
    own, job = DEPLOYMENT["spec"]["template"], JOB["spec"]["template"]
    selectors = [
        DEPLOYMENT["spec"]["selector"],
        {"matchLabels": only("Service")["spec"]["selector"]},
        only("PodDisruptionBudget")["spec"]["selector"],
        only("NetworkPolicy")["spec"]["podSelector"],
        *(rule["labelSelector"] for rule in POD["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert matches(selector, own)
        assert not matches(selector, job)
    of_job = only("NetworkPolicy", "embedserve-export")["spec"]["podSelector"]
    assert matches(of_job, job)
    assert not matches(of_job, own)


def test_ports() -> None:
    """One port by one name, the server's own, and the only one that is open."""
    assert {"http": in_force().port} == PORT
    (service_port,) = only("Service")["spec"]["ports"]
    assert service_port["targetPort"] in PORT
    (rule,) = only("NetworkPolicy")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == list(PORT.values())


def test_no_egress() -> None:
    """The server's Pods may open no connection; the Job's may ask for names and for HTTPS."""
    policy = only("NetworkPolicy")["spec"]
    assert (sorted(policy["policyTypes"]), policy["egress"]) == (["Egress", "Ingress"], [])
    of_job = only("NetworkPolicy", "embedserve-export")["spec"]
    assert (sorted(of_job["policyTypes"]), of_job["ingress"]) == (["Egress", "Ingress"], [])
    (rule,) = of_job["egress"]
    assert sorted({port["port"] for port in rule["ports"]}) == [53, 443]


@pytest.mark.parametrize("pod", [POD, JOB_POD], ids=["server", "export"])
def test_confined(pod: Json) -> None:
    """What the Pod Security Standard `restricted` asks for, a read-only root, and no token."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == only("ServiceAccount")["metadata"]["name"]
    assert only("ServiceAccount")["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_artifacts_on_a_volume() -> None:
    """The Job writes where the server reads, and the server cannot write there."""
    claim = only("PersistentVolumeClaim", "embedserve-artifacts")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (mount,) = patched("artifacts-pvc")["volumeMounts"]
    assert mount["readOnly"] is True
    assert mount["mountPath"] == environment(CONTAINER)["EMBEDSERVE_ARTIFACTS"]
    pod = patch_file("artifacts-pvc", "deployment.yaml")["spec"]["template"]["spec"]
    job = JOB_POD["containers"][0]
    paths = {m["name"]: m for m in job["volumeMounts"]}
    for volumes, name in ((pod["volumes"], mount["name"]), (JOB_POD["volumes"], "artifacts")):
        claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes if v["name"] == name]
        assert claims == [claim["metadata"]["name"]]
    arguments = job["args"]
    assert arguments[arguments.index("--out") + 1] == paths["artifacts"]["mountPath"]
    assert not paths["artifacts"].get("readOnly")
    assert environment(job)["HOME"] == paths["tmp"]["mountPath"]


def test_models() -> None:
    """The list is part of the project's, the server reads it where it is, the Job makes all."""
    listed, whole = models_toml.read(MODELS), models_toml.read(ROOT / "models.toml")
    assert listed.models.items() <= whole.models.items()
    (generator,) = KUSTOMIZATIONS[DEPLOY / "base"]["configMapGenerator"]
    job = JOB_POD["containers"][0]
    for pod, path in (
        (POD, environment(CONTAINER)["EMBEDSERVE_MODELS"]),
        (JOB_POD, job["args"][job["args"].index("--models") + 1]),
    ):
        (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "models")
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert volumes["models"]["configMap"]["name"] == generator["name"]
        assert [f"{mount['mountPath']}/{name}" for name in generator["files"]] == [path]
    assert job["args"][4:] == list(listed.models)
    assert in_force().skip_missing is False


def test_keys() -> None:
    """The file of keys is where the Secret's is mounted, readable by the group alone."""
    found = in_force(patched("keys"))
    pod = patch_file("keys", "deployment.yaml")["spec"]["template"]["spec"]
    (volume,), (mount,) = pod["volumes"], patched("keys")["volumeMounts"]
    (item,) = volume["secret"]["items"]
    assert f"{mount['mountPath']}/{item['path']}" == found.api_keys_file
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    assert volume["secret"]["defaultMode"] == 0o440
    (endpoint,) = patch_file("keys", "servicemonitor.yaml")["spec"]["endpoints"]
    sent = endpoint.pop("authorization")["credentials"]
    assert sent["name"] == volume["secret"]["secretName"]
    assert sent["key"] != item["key"]  # one key, and not the whole file
    assert [endpoint] == MONITOR["spec"]["endpoints"]


# -- with what the server does -----------------------------------------------------------------


def paths_of_server() -> set[str]:
    """Every route of the application."""
    service = Service(Settings(), ModelRegistry([]), 1, Readiness(), Metrics())
    found = {route.path for route in routes(service, 1)}
    service.scheduler.close(LANES_GRACE)
    return found


def test_probes_ask_the_server() -> None:
    """Each probe asks a route that there is: livez to live, readyz to get traffic."""
    asked = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness")}
    assert {get["path"] for get in asked.values()} == {"/readyz"}
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert {"/readyz", "/livez"} <= paths_of_server()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] in PORT
        assert CONTAINER[probe]["timeoutSeconds"] <= CONTAINER[probe]["periodSeconds"]


def noticed(probe: str) -> float:
    """Seconds until a failing probe has its effect, at most."""
    found = CONTAINER[f"{probe}Probe"]
    seconds: float = found["periodSeconds"] * found["failureThreshold"] + found["timeoutSeconds"]
    return seconds


def test_probes_in_time() -> None:
    """A Pod is out of the Service before it is restarted, and well before a drain's end."""
    assert CONTAINER["readinessProbe"]["periodSeconds"] <= server.QUIET_SECONDS
    assert noticed("readiness") < noticed("liveness") - CONTAINER["livenessProbe"]["timeoutSeconds"]
    assert noticed("readiness") < in_force().drain_seconds


def test_grace() -> None:
    """The drain, and what follows it, fit into the time until SIGKILL, in all."""
    sleep = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep > server.QUIET_SECONDS
    end = in_force().drain_seconds + server.QUEUE_SECONDS + LANES_GRACE + EXIT_SECONDS
    assert POD["terminationGracePeriodSeconds"] >= sleep + end


def test_service_links_would_be_refused() -> None:
    """The variables that a Service's name becomes are no settings: Pods get none."""
    name = only("Service")["metadata"]["name"].upper()
    with pytest.raises(StartupError, match="is not a setting"):
        settings.merge(models_toml.read(MODELS), {f"{name}_SERVICE_HOST": "10.0.0.1"}, {}, MODELS)
    assert POD["enableServiceLinks"] is False


def test_resources(minilm: Server) -> None:
    """Memory is what the server may come to use by its own bound; cores are whole."""
    said = re.search(r"memory: (\d+) MB loaded", minilm.log.read_text())
    assert said is not None
    loaded = int(said[1]) * 1_000_000
    manifests = [artifact.read(ROOT / "artifacts" / MINILM)]
    limits, requests = (CONTAINER["resources"][part] for part in ("limits", "requests"))
    assert limits == requests  # else the node may lend what the bound needs
    cores = int(limits["cpu"])
    for container, provider in ((CONTAINER, "cpu"), (patched("cuda"), "cuda")):
        found = in_force(*([container] if provider == "cuda" else []))
        assert found.provider == provider
        of = PROVIDERS[provider]
        bound = footprint.estimate(loaded, manifests, of.lanes or cores, of.tokens_per_pass, found)
        assert quantity(container["resources"]["limits"]["memory"]) >= bound.most


def test_scraped() -> None:
    """The ServiceMonitor names the Service, its port and the route; a scrape ends before the next.

    Its schema is not the cluster's own: the fields are those that the operator documents.
    """
    assert MONITOR["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(MONITOR["spec"]) == {"selector", "endpoints"}
    assert matches(MONITOR["spec"]["selector"], only("Service"))
    (endpoint,) = MONITOR["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["port"] in {port["name"] for port in only("Service")["spec"]["ports"]}
    assert endpoint["path"] in paths_of_server()
    assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])
    assert endpoint["scrapeTimeout"][-1] == endpoint["interval"][-1] == "s"


def test_scaled() -> None:
    """By a gauge that the server has and the adapter asks for, before requests are refused."""
    spec = only("HorizontalPodAutoscaler")["spec"]
    target = spec["scaleTargetRef"]
    assert only(target["kind"], target["name"])["apiVersion"] == target["apiVersion"]
    wait, cpu = spec["metrics"]
    name = wait["pods"]["metric"]["name"]
    (row,) = (row for row in METRICS if f"embedserve_{row.name}" == name)
    assert (row.kind, row.labels) == (Gauge, ())
    assert 0 < float(wait["pods"]["target"]["averageValue"]) < in_force().max_wait / 2
    assert cpu["resource"]["name"] == "cpu"
    (rule,) = load(VALUES)["rules"]["custom"]
    assert re.match(r"\w+", rule["seriesQuery"])[0] == name  # type: ignore[index]  # or it fails
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    assert {"<<.Series>>", "<<.LabelMatchers>>", "<<.GroupBy>>"} <= set(
        re.findall(r"<<\.\w+>>", rule["metricsQuery"])
    )


def test_one_pod_may_leave() -> None:
    """A node can be emptied while others serve."""
    leave = only("PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert leave < only("HorizontalPodAutoscaler")["spec"]["minReplicas"]
    assert leave < DEPLOYMENT["spec"]["replicas"]


# -- built -------------------------------------------------------------------------------------


def check_built(objects: list[Json]) -> dict[str, Json]:
    """Valid in every version, no object twice, all that is named is there. By kind."""
    names = {(found["kind"], found["metadata"]["name"]) for found in objects}
    assert len(names) == len(objects)
    for found in objects:
        if found["kind"] != "ServiceMonitor":
            for version in VERSIONS:
                kubernetes_validate.validate(found, version, strict=True)
    pods = [o["spec"]["template"]["spec"] for o in objects if "template" in o.get("spec", {})]
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = pod["containers"][0]["volumeMounts"]
        assert {mount["name"] for mount in mounts} == set(volumes)
        named = volumes["models"]["configMap"]["name"]
        assert named != "embedserve-models"  # the hash of its content
        assert ("ConfigMap", named) in names
    return {found["kind"]: found for found in objects}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_overlays_build(build: Build, overlay: Path) -> None:
    """An overlay gives a whole deployment in one namespace, its replicas left to the autoscaler."""
    objects = build(overlay)
    kinds = check_built(objects)
    assert {found["metadata"]["namespace"] for found in objects} == {"embedserve"}
    assert "replicas" not in kinds["Deployment"]["spec"]
    (container,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.com/")
    assert ("Job" in kinds) == (overlay.name == "pvc")


def test_all_components_build(build: Build, tmp_path: Path) -> None:
    """All components but the other source of artifacts, in one deployment."""
    chosen = ("artifacts-pvc", "autoscaling", "monitoring", "keys", "cuda")
    assert {*chosen, "artifacts-image"} == {path.name for path in COMPONENTS.iterdir()}
    whole = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(DEPLOY / "base", tmp_path)],
        "components": [os.path.relpath(COMPONENTS / name, tmp_path) for name in chosen],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(whole))
    kinds = check_built(build(tmp_path))
    (container,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    expected = environment(CONTAINER) | environment(patched("keys")) | environment(patched("cuda"))
    assert environment(container) == expected
    assert container["resources"]["limits"] == {
        **CONTAINER["resources"]["limits"],
        **patched("cuda")["resources"]["limits"],
    }
    endpoints = kinds["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoints == patch_file("keys", "servicemonitor.yaml")["spec"]["endpoints"]
