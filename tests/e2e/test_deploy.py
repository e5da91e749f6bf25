"""`faasrt deploy`: manifests and image agree with the official schemas and with the server; bad options are refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from faasrt import SandboxConfig, __version__
from faasrt.cli.serve import serve_command
from faasrt.config import Settings
from faasrt.discovery import DiscoverySettings
from support.cli import faasrt

Manifest = dict[str, Any]
FLEET = ["--image", "registry.example.com:5000/team/faasrt:1.0", "--replicas", "3", "--namespace", "sandbox"]
DEPLOYMENTS = [
    [],
    FLEET,
    [*FLEET, "--python", "wasm", "--name", "graders", "--cpus", "8", "--max-replicas", "500"],
    ["--name", "null", "--namespace", "123", "--image", "1:2"],  # YAML would read these as other types
]
# The first version with user namespaces by default, and the newest one that the validator knows.
VERSIONS = ["1.33", "1.37"]


def printed(*arguments: str) -> str:
    code, stdout, stderr = faasrt("deploy", *arguments)
    assert (code, stderr) == (0, "")
    return stdout


def manifests(*arguments: str) -> dict[str, Manifest]:
    """Return the manifests of `faasrt deploy kubernetes`, by their kind."""
    objects = list(yaml.safe_load_all(printed("kubernetes", *arguments)))
    by_kind = {item["kind"]: item for item in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def pod_of(objects: dict[str, Manifest]) -> Manifest:
    return dict(objects["Deployment"]["spec"]["template"])


def container_of(objects: dict[str, Manifest]) -> Manifest:
    [container] = pod_of(objects)["spec"]["containers"]
    return dict(container)


def options_of(arguments: list[str], tmp_path: Path) -> dict[str, Any]:
    """Return the options that `faasrt serve` parses from these arguments. Their token file is replaced by another."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    with_token = [re.sub(r"^--token-file=.*", f"--token-file={token}", argument) for argument in arguments]
    return serve_command.make_context("serve", with_token).params


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("arguments", DEPLOYMENTS, ids=" ".join)
def test_manifests_agree_with_the_schemas_of_kubernetes(arguments: list[str], version: str) -> None:
    """Every manifest is valid in the strict schemas, which allow no unknown field."""
    objects = manifests(*arguments)
    assert list(objects) == [
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
    ]
    for manifest in objects.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validator_refuses_wrong_manifests() -> None:
    """An unknown field, a wrong type and a missing field are each an error."""
    changes: list[Manifest] = [{"replica": 3}, {"selector": 3}, {"template": {"spec": {}}}]
    for change in changes:
        manifest = manifests()["Deployment"]
        manifest["spec"] |= change
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("arguments", DEPLOYMENTS, ids=" ".join)
def test_selectors_match_the_labels_of_the_pods(arguments: list[str]) -> None:
    """All selectors name the labels of the pods, and all objects have the same name and namespace."""
    objects = manifests(*arguments)
    labels = pod_of(objects)["metadata"]["labels"]
    name = arguments[arguments.index("--name") + 1] if "--name" in arguments else "faasrt"
    assert labels == {"app.kubernetes.io/name": "faasrt", "app.kubernetes.io/instance": name}
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    [spread] = pod_of(objects)["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    assert {item["metadata"]["name"] for item in objects.values()} == {name}
    namespace = arguments[arguments.index("--namespace") + 1] if "--namespace" in arguments else None
    assert {item["metadata"].get("namespace") for item in objects.values()} == {namespace}


@pytest.mark.parametrize("arguments", DEPLOYMENTS, ids=" ".join)
def test_the_container_agrees_with_the_server(arguments: list[str], tmp_path: Path) -> None:
    """`faasrt serve` takes the arguments, listens on the port, has the paths of the probes, and drains in time."""
    objects = manifests(*arguments)
    pod, container = pod_of(objects)["spec"], container_of(objects)
    options = options_of(container["args"], tmp_path)
    [port] = [item["containerPort"] for item in container["ports"]]
    assert (options["host"], options["port"]) == ("0.0.0.0", port)
    paths = json.loads(files("faasrt.local.http").joinpath("openapi.json").read_text())["paths"]
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port}
        assert "get" in paths[path]
    leave_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert SandboxConfig().timeout_limit_s < options["drain_s"] < pod["terminationGracePeriodSeconds"] - leave_s
    assert str(options["workers"]) == container["resources"]["requests"]["cpu"]
    engines = dict(options["engines"])
    assert engines == ({"python": "wasm"} if "wasm" in arguments else {})
    token = next(item for item in container["args"] if item.startswith("--token-file=")).partition("=")[2]
    mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
    volumes = {item["name"]: item for item in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts[str(Path(token).parent)]]["secret"]["secretName"].endswith("-token")
    assert volumes[mounts["/tmp"]]["emptyDir"]["medium"] == "Memory"
    [service_port] = objects["Service"]["spec"]["ports"]
    assert (objects["Service"]["spec"]["clusterIP"], service_port["port"]) == ("None", port)
    assert service_port["targetPort"] == container["ports"][0]["name"]


@pytest.mark.parametrize("arguments", DEPLOYMENTS, ids=" ".join)
def test_pods_have_few_rights_and_no_egress(arguments: list[str]) -> None:
    """The root is read-only, the user is not root, capabilities and escalation are gone, and nothing may leave."""
    objects = manifests(*arguments)
    policy, security = objects["NetworkPolicy"]["spec"], container_of(objects)["securityContext"]
    assert "Egress" in policy["policyTypes"]
    assert policy["egress"] == []
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (security["readOnlyRootFilesystem"], security["runAsNonRoot"]) == (True, True)
    assert security["allowPrivilegeEscalation"] is False
    [rule] = policy["ingress"]
    assert rule["ports"] == [{"port": container_of(objects)["ports"][0]["name"]}]
    assert rule["from"] == [{"podSelector": {}}]
    assert pod_of(objects)["spec"]["automountServiceAccountToken"] is False
    assert pod_of(objects)["spec"]["hostUsers"] is False


def test_only_native_python_asks_for_namespaces() -> None:
    """With `wasm`, the pod fits the Pod Security level `restricted`, which allows neither of these settings."""
    security = container_of(manifests())["securityContext"]
    assert security["procMount"] == "Unmasked"
    assert security["seccompProfile"] == security["appArmorProfile"] == {"type": "Unconfined"}
    security = container_of(manifests("--python", "wasm"))["securityContext"]
    assert {"procMount", "appArmorProfile"}.isdisjoint(security)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_replicas_are_the_limits_of_the_autoscaler() -> None:
    """`--replicas` is the least number of pods, and four times that the default of the largest."""
    scaling = manifests("--replicas", "3")["HorizontalPodAutoscaler"]["spec"]
    assert (scaling["minReplicas"], scaling["maxReplicas"]) == (3, 12)
    scaling = manifests("--replicas", "3", "--max-replicas", "3")["HorizontalPodAutoscaler"]["spec"]
    assert (scaling["minReplicas"], scaling["maxReplicas"]) == (3, 3)
    assert "replicas" not in manifests()["Deployment"]["spec"]


def test_the_url_for_clients_is_in_the_comments() -> None:
    """It can be used as it stands, and names the Service, its namespace and its port."""
    for arguments, expected in (
        ([], "dns+http://faasrt:8000"),
        (FLEET, "dns+http://faasrt.sandbox:8000"),
    ):
        [url] = re.findall(r"COZE_LOOP_FAAS_URL=(\S+)", printed("kubernetes", *arguments))
        assert url == expected
        assert Settings.from_url(url).endpoints["python"] == (url,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "0"], "'--replicas': 0 must be at least 1"),
        (["--replicas", "2.5"], "'--replicas': '2.5' is not a whole number"),
        (["--replicas", "5", "--max-replicas", "4"], "--max-replicas 4 must be at least --replicas, 5"),
        (["--cpus", "0"], "'--cpus': 0 must be at least 1"),
        (["--name", "My_Fleet"], "'--name': 'My_Fleet' must be a DNS label"),
        (["--name", "1st"], "'--name': '1st' must be a DNS label"),
        (["--name", "a" * 64], "must be a DNS label"),
        (["--name", "fleet-"], "must be a DNS label"),
        (["--name", ""], "'--name': '' must be a DNS label"),
        (["--namespace", "a.b"], "'--namespace': 'a.b' must be a DNS label"),
        (["--namespace", "a\nb: c"], "must be a DNS label"),
        (["--image", "faasrt:1\nprivileged: true"], "must be the name of an image"),
        (["--image", "Faasrt"], "'--image': 'Faasrt' must be the name of an image"),
        (["--image", "https://registry.example.com/faasrt"], "must be the name of an image"),
        (["--python", "deno"], "'--python': 'deno' is not one of 'native', 'wasm'"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    """The error names the option, and nothing is printed."""
    code, stdout, stderr = faasrt("deploy", "kubernetes", *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr


@pytest.mark.parametrize(
    "image", ["faasrt", "a.b/c", "localhost:5000/faasrt", "r.io/a/b_c:V.1-x", f"x@sha256:{'0' * 64}"]
)
def test_names_of_images_are_accepted(image: str) -> None:
    """Registry, port, path, tag and digest are optional."""
    assert container_of(manifests("--image", image))["image"] == image


def test_the_image_agrees_with_the_manifests(tmp_path: Path) -> None:
    """Both have the same user, cache folder and token file, and the server accepts the command of the image."""
    lines = printed("containerfile").splitlines()
    steps = dict(line.split(" ", 1) for line in lines if re.match("FROM|ENV|USER|EXPOSE|ENTRYPOINT|CMD", line))
    container = container_of(manifests())
    wheel = f"faasrt-{__version__}-py3-none-any.whl"
    assert f'RUN pip install --no-cache-dir "/wheels/{wheel}[local,science]"' in lines
    assert f"COPY {wheel} /wheels/" in printed("containerfile", "--wheel").splitlines()
    security = container["securityContext"]
    assert steps["USER"] == f"{security['runAsUser']}:{security['runAsGroup']}"
    cache = steps["ENV"].removeprefix("FAASRT_CACHE_DIR=")
    assert f"{cache}/programs" in {item["mountPath"] for item in container["volumeMounts"]}
    assert json.loads(steps["ENTRYPOINT"]) == ["faasrt", "serve"]
    command = json.loads(steps["CMD"])
    assert set(command) <= set(container["args"])
    assert str(options_of(command, tmp_path)["port"]) == steps["EXPOSE"]
    assert re.search(r"^RUN faasrt warmup --engine python=wasm$", "\n".join(lines), re.MULTILINE)


TLS = ["--tls-cert", "/etc/faasrt/cert.pem", "--tls-key", "/etc/faasrt/key.pem"]


def test_the_unit_is_valid(tmp_path: Path) -> None:
    """systemd itself has no objection. It also checks that the executable exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "faasrt.service"
    for options in ([], [*TLS, "--host", "::", "--config", "/etc/faasrt/config.toml", "--memory-max", "8G"]):
        unit.write_text(printed("systemd", "--executable", "/bin/true", *options))
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    unit.write_text(printed("systemd", "--executable", "/no/faasrt").replace("KillMode", "KilMode"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "Unknown key 'KilMode'" in done.stderr
    assert "/no/faasrt is not executable" in done.stderr


def test_the_unit_agrees_with_the_server(tmp_path: Path) -> None:
    """`faasrt serve` takes the arguments, drains before systemd kills it, and reads the token that the unit loads."""
    lines = printed("systemd").splitlines()
    unit = dict(line.split("=", 1) for line in lines if re.match("[A-Z][A-Za-z]+=", line))
    executable, command, *arguments = unit["ExecStart"].split(" ")
    assert (executable, command) == (str(Path(sys.executable).parent / "faasrt"), "serve")
    options = options_of(arguments, tmp_path)
    assert SandboxConfig().timeout_limit_s < options["drain_s"] < int(unit["TimeoutStopSec"])
    assert unit["KillMode"] == "mixed"
    assert f"--token-file=%d/{unit['LoadCredential'].partition(':')[0]}" in arguments
    assert unit["Environment"] == f"FAASRT_CACHE_DIR=%C/{unit['CacheDirectory']}"


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], ["--host=127.0.0.1", "--port=8000"]),
        (["--host", "::"], ["--host=::", "--port=8000"]),
        (TLS, ["--host=127.0.0.1", "--port=8000", "--tls-cert=%d/cert", "--tls-key=%d/key"]),
        (["--config", "/etc/faasrt/config.toml"], ["--config=/etc/faasrt/config.toml"]),
        (["--config", "/etc/x", "--host", "::1", *TLS], ["--config=/etc/x", "--host=::1", "--tls-cert=%d/cert"]),
    ],
)
def test_the_unit_has_the_files_of_the_operator(options: list[str], arguments: list[str], tmp_path: Path) -> None:
    """The server gets copies of the certificate and its key, which root alone can read. Without --host, the address is
    that of the configuration file, if there is one.
    """
    lines = printed("systemd", *options, "--memory-max", "8G").splitlines()
    [command] = [line.split(" ")[2:] for line in lines if line.startswith("ExecStart=")]
    assert command[: len(arguments) + 1].count("--token-file=%d/token") == 1
    assert [each for each in command if not each.startswith("--token-file")][: len(arguments)] == arguments
    assert options_of(command, tmp_path)["drain_s"] == 125
    loaded = {line.removeprefix("LoadCredential=") for line in lines if line.startswith("LoadCredential=")}
    files = {"cert:/etc/faasrt/cert.pem", "key:/etc/faasrt/key.pem"} if "--tls-cert" in options else set()
    assert loaded == {"token:/etc/faasrt/token", *files}
    assert {"MemoryMax=8G", "MemorySwapMax=0"} <= {*lines}
    assert "MemoryMax" not in printed("systemd", *options)


@pytest.mark.parametrize("option", ["--executable", "--config", "--tls-cert", "--tls-key"])
def test_paths_in_the_unit_must_be_plain(option: str) -> None:
    """A space, or a character that systemd replaces, would change the command."""
    for path in ("faasrt", "/opt/my tools/faasrt", "/opt/%h/faasrt", "/opt/$HOME/faasrt", "/opt/faasrt\nUser=root", ""):
        code, stdout, stderr = faasrt("deploy", "systemd", option, path)
        assert (code, stdout) == (2, "")
        assert "must be an absolute path without spaces" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert", "/etc/cert.pem"], "--tls-cert and --tls-key need each other"),
        (["--tls-key", "/etc/key.pem"], "--tls-cert and --tls-key need each other"),
        (
            ["--config", "/root/config.toml"],
            "the service cannot read /home/, /root/, /run/user/, /tmp/, /var/tmp/; use",
        ),
        (["--host", "a b"], "'--host': 'a b' must be an address"),
        (["--memory-max", "lots"], "'--memory-max': 'lots' must be a size such as 8G"),
        (["--memory-max", "50%"], "must be a size such as 8G"),
        (["--memory-max", "0G"], "must be a size such as 8G"),
    ],
)
def test_wrong_options_of_the_unit_are_refused(arguments: list[str], message: str) -> None:
    """The error says what to do, and nothing is printed."""
    code, stdout, stderr = faasrt("deploy", "systemd", *arguments)
    assert (code, stdout) == (2, "")
    assert message in stderr


def test_pods_serve_until_clients_have_looked_their_name_up_again() -> None:
    """A client does so within its longest period, and DNS servers may answer with addresses that are 30 s old."""
    settings = DiscoverySettings()
    seconds = container_of(manifests())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert seconds >= settings.period_s * (1 + settings.jitter) + 30


def test_the_memory_of_a_pod_grows_with_its_workers() -> None:
    """1 GiB for the server, and 1.5 GiB for each worker."""
    container = container_of(manifests("--cpus", "3"))
    assert container["resources"]["requests"]["memory"] == f"{round(1024 * (1 + 3 * 1.5))}Mi"


def test_deploy_without_a_file_shows_the_files() -> None:
    """The help lists what can be printed."""
    code, stdout, stderr = faasrt("deploy", "--help")
    assert (code, stderr) == (0, "")
    for name in ("systemd", "kubernetes", "containerfile", "prometheus-rules", "grafana-dashboard"):
        assert re.search(rf"^  {name} ", stdout, re.MULTILINE)
    with pytest.raises(click.UsageError):
        serve_command.make_context("serve", ["--no-such-option"])
