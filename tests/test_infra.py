"""The files of infra/: manifests against their published schemas, what refers to what, the image's recipe linted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[1] / "infra"
MANIFESTS = sorted(path for path in (INFRA / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_what_kubernetes_schema_says(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_kustomization_names_every_manifest_and_secret() -> None:
    kustomization = yaml.safe_load((INFRA / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in MANIFESTS]
    [secrets] = kustomization["secretGenerator"]
    names = {line.partition("=")[0] for line in (INFRA / "kubernetes" / secrets["envs"][0]).read_text().split()}
    for path in MANIFESTS:
        for reference in _found(list(yaml.safe_load_all(path.read_text())), "secretKeyRef"):
            assert reference["name"] == secrets["name"]
            assert reference["key"] in names


def test_compose_starts_things_in_order_and_only_for_this_machine() -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        assert "healthcheck" in service, name
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert needed in services
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith(("$", ".")) or source in compose["volumes"]
    queues = {word for service in services.values() for word in str(service.get("command", "")).split()}
    assert {"data", "gpu"} <= queues
    gpu = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())["services"]
    assert set(gpu) <= set(services)


def test_the_image_is_built_as_a_linter_advises() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("there is no hadolint for this platform")
    done = subprocess.run([str(hadolint), str(INFRA / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _found(value: Any, key: str) -> list[Any]:
    if isinstance(value, dict):
        here = [value[key]] if key in value else []
        return here + [one for inner in value.values() for one in _found(inner, key)]
    return [one for inner in value for one in _found(inner, key)] if isinstance(value, list) else []
