from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from faasrt import __version__
from faasrt.cli.options import Number
from faasrt.cli.output import OK, write

# How long a pod serves on when it is to go, until all clients have noticed: the longest period of their look-ups, 12 s,
# and the time for which DNS servers in clusters keep answers, 30 s, rounded up.
_LEAVE_S = 45
# How long a server then waits for programs in flight: their largest time limit, the longest wait in its queue, and a
# reserve.
_DRAIN_S = 125
_SPARE_S = 10
_GIB_FOR_SERVER, _GIB_FOR_WORKER = 1.0, 1.5
_MAX_REPLICAS_FACTOR = 4
_REPLICAS_LIMIT = 5000  # pods; the limit of Kubernetes for a cluster is 150,000 pods on 5,000 nodes
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# systemd expands "%" and "$".
_PATH = re.compile(r"/[\w./+@:-]+", re.ASCII)
_PATH_DESCRIPTION = "an absolute path without spaces"
# The folders that the settings of the unit hide from the service.
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 (nothing is written there)
_HOST = re.compile(r"[\w.:-]+", re.ASCII)
_MEMORY = re.compile(r"[1-9][0-9]{0,8}[MGT]", re.ASCII)
# A registry with a port, path, tag and digest, as in registry.example.com:5000/team/faasrt:1.0@sha256:...
_IMAGE = re.compile(
    r"(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


class _PatternType(click.ParamType):  # type: ignore[type-arg]
    """`description` completes the error, after "must be"."""

    def __init__(self, name: str, pattern: re.Pattern[str], description: str) -> None:
        self.name, self._pattern, self._description = name, pattern, description

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not self._pattern.fullmatch(value):
            self.fail(f"{value!r} must be {self._description}", param, ctx)
        return str(value)


@click.group("deploy", short_help="Print files for running servers.")
def deploy_command() -> None:
    """Print files for running one server or a fleet: a service of systemd, manifests for Kubernetes, the definition of
    an image, alerts for Prometheus, and a dashboard for Grafana.

    Read `faasrt/docs/running-a-fleet.md` first.
    """


@deploy_command.command("kubernetes", short_help="Manifests for Kubernetes.", context_settings={"show_default": True})
@click.option(
    "--image",
    type=_PatternType("image", _IMAGE, "the name of an image, such as registry.example.com/faasrt:1.0"),
    default=f"faasrt:{__version__}",
    help="The image that was built with `faasrt deploy containerfile`.",
)
@click.option("--replicas", type=Number(1, _REPLICAS_LIMIT), default=2, help="The least number of pods.")
@click.option(
    "--max-replicas",
    type=Number(1, _REPLICAS_LIMIT),
    show_default="four times --replicas",
    help="The largest number of pods.",
)
@click.option("--cpus", type=Number(1, 256), default=2, help="The CPUs of a pod, and its workers.")
@click.option(
    "--namespace",
    type=_PatternType("label", _NAMESPACE, "a DNS label: at most 63 of a-z, 0-9 and -, no - at its ends"),
    show_default="that of kubectl",
    help="The namespace of all objects.",
)
@click.option(
    "--name",
    type=_PatternType("label", _NAME, "a DNS label that begins with a letter: at most 63 of a-z, 0-9 and -"),
    default="faasrt",
    help="The name of all objects.",
)
@click.option(
    "--python",
    type=click.Choice(["native", "wasm"]),
    default="native",
    help="The engine of Python programs. native needs a cluster that allows namespaces in a pod; where it does not, "
    "Python runs on wasm. wasm asks for no such rights.",
)
def kubernetes_command(
    image: str,
    replicas: int,
    max_replicas: int | None,
    cpus: int,
    namespace: str | None,
    name: str,
    python: str,
) -> int:
    """Print manifests as YAML: a Deployment, a headless Service, a PodDisruptionBudget, a HorizontalPodAutoscaler and a
    NetworkPolicy.
    """
    if max_replicas is not None and max_replicas < replicas:
        raise click.UsageError(f"--max-replicas {max_replicas} must be at least --replicas, {replicas}")
    host = f"{name}.{namespace}" if namespace else name
    fields = {
        "version": __version__,
        "image": image,
        "replicas": replicas,
        "max_replicas": max_replicas or min(_MAX_REPLICAS_FACTOR * replicas, _REPLICAS_LIMIT),
        "cpus": cpus,
        "memory": f"{round(1024 * (_GIB_FOR_SERVER + _GIB_FOR_WORKER * cpus))}Mi",
        "namespace": namespace,
        "name": name,
        "python": python,
        "leave_s": _LEAVE_S,
        "drain_s": _DRAIN_S,
        "spare_s": _SPARE_S,
        "kubectl": f" -n {namespace}" if namespace else "",
        "url": f"dns+http://{host}:8000",
    }
    write(_render("kubernetes.yaml", fields))
    return OK


@deploy_command.command("systemd", short_help="A service of systemd.", context_settings={"show_default": True})
@click.option(
    "--executable",
    type=_PatternType("path", _PATH, _PATH_DESCRIPTION),
    default=lambda: str(Path(sys.executable).parent / "faasrt"),
    show_default="that of this installation",
    help="The path of the command `faasrt`, which all users must be able to read.",
)
@click.option(
    "--config",
    type=_PatternType("path", _PATH, _PATH_DESCRIPTION),
    help="The file for --config of `faasrt serve`, which all users must be able to read. It may name host and port.",
)
@click.option(
    "--host",
    type=_PatternType("address", _HOST, "an address, such as 0.0.0.0"),
    show_default="127.0.0.1, or that in --config",
    help="The address to listen on.",
)
@click.option(
    "--tls-cert",
    type=_PatternType("path", _PATH, _PATH_DESCRIPTION),
    help="The certificate of the server in PEM, for HTTPS. Only root need be able to read it.",
)
@click.option(
    "--tls-key",
    type=_PatternType("path", _PATH, _PATH_DESCRIPTION),
    help="The key of the certificate in PEM, without a password. Only root need be able to read it.",
)
@click.option(
    "--memory-max",
    type=_PatternType("size", _MEMORY, "a size such as 8G: a whole number and M, G or T"),
    show_default="no limit",
    help="The most memory that the server and all programs may use together.",
)
def systemd_command(
    executable: str,
    config: str | None,
    host: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    memory_max: str | None,
) -> int:
    """Print a unit for one server of a machine: a user of its own, a cgroup for each program, and time to drain.

    The comments in the unit have the steps to install it.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key need each other")
    if config is not None and config.startswith(_HIDDEN):
        raise click.UsageError(f"--config {config}: the service cannot read {', '.join(_HIDDEN)}; use /etc/faasrt")
    fields = {
        "version": __version__,
        "executable": executable,
        "config": config,
        "host": host or (None if config else "127.0.0.1"),
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "memory_max": memory_max,
        "drain_s": _DRAIN_S,
        "spare_s": _SPARE_S,
    }
    write(_render("faasrt.service", fields))
    return OK


@deploy_command.command("containerfile", short_help="The definition of an image.")
@click.option("--wheel", is_flag=True, help="Build from a wheel of faasrt in the folder, instead of a checkout.")
def containerfile_command(wheel: bool) -> int:
    """Print the definition of an image, for `podman build`, `buildah build` or `docker build` in a checkout."""
    write(_render("Containerfile", {"version": __version__, "wheel": wheel}))
    return OK


@deploy_command.command("prometheus-rules", short_help="Alerts for Prometheus.")
def prometheus_rules_command() -> int:
    """Print a file of alerting rules for Prometheus, on the metrics of servers and clients."""
    write(_read("prometheus-rules.yaml"))
    return OK


@deploy_command.command("grafana-dashboard", short_help="A dashboard for Grafana.")
def grafana_dashboard_command() -> int:
    """Print a dashboard to import into Grafana, with the metrics of servers and clients."""
    write(_read("grafana-dashboard.json"))
    return OK


def _read(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text("utf-8")


def _render(name: str, fields: dict[str, Any]) -> str:
    import jinja2  # which the other commands do not need

    environment = jinja2.Environment(  # noqa: S701 - this is not HTML, and every value is checked
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(_read(name)).render(fields)
