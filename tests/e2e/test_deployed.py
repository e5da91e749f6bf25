"""The files of `faasrt deploy` at work: systemd runs the unit, and podman the image that buildah has built.

These tests need root, Debian packages and minutes, so `.ci/run deployed` runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from faasrt import __version__
from support.cli import faasrt
from support.served import CLEAN, FAASRT, strays

pytestmark = [pytest.mark.deployed, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
TOKEN = "s3cret"
# Where controllers are in cgroups of version 1, neither systemd nor crun starts. Then there is version 2 without them.
ONLY_CGROUP2 = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
# systemd as the first process of its namespaces. It has the units of one folder only, so it starts no other service.
BOOT = f"""
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/cache
mount -t proc proc /proc
{ONLY_CGROUP2}
for target in sysinit basic shutdown umount final multi-user network-online; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > "$0/units/$target.target"
done
printf '[Unit]\\nDefaultDependencies=no\\nWants=faasrt.service\\n' > "$0/units/default.target"
exec env -i container=test SYSTEMD_UNIT_PATH="$0/units" PATH="$PATH" /lib/systemd/systemd --system --log-target=console
"""


def require(*programs: str) -> None:
    if os.getuid():
        pytest.skip("this test needs root")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"this test needs {program}, a package of Debian")


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def until(condition: Callable[[], bool], describe: Callable[[], str], seconds: float = 300) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, describe()
        time.sleep(0.2)


# ---- systemd


@pytest.fixture(scope="module")
def installation() -> Iterator[Path]:
    """Yield a folder with faasrt, installed as the unit says: where all users can read it."""
    require("unshare", "nsenter", "systemd-analyze")
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("this test needs systemd, a package of Debian")
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this test needs /usr/bin/python3")
    with tempfile.TemporaryDirectory(dir="/opt", prefix="faasrt-") as folder:
        Path(folder).chmod(0o755)
        run(python, "-m", "venv", "--without-pip", folder)
        pip = [sys.executable, "-m", "pip", "--python", f"{folder}/bin/python", "install", "-q"]
        run(*pip, f"{ROOT}[local]", env=CLEAN | {"TMPDIR": folder})
        yield Path(folder)


class Machine:
    """systemd with the unit, in namespaces. `pid` is that of systemd, outside of them."""

    def __init__(self, folder: Path, executable: Path, pid: int) -> None:
        self._folder, self._executable, self.pid = folder, executable, pid

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", *command]

    def print_unit(self, *options: str) -> str:
        return run(self._executable, "deploy", "systemd", *options)

    def systemctl(self, *arguments: str) -> str:
        return run(*self.inside("systemctl", *arguments))

    def property(self, name: str) -> str:
        return self.systemctl("show", "--value", "--property", name, "faasrt").strip()

    def client(self, *arguments: str, token: str = TOKEN) -> subprocess.Popen[str]:
        url = [] if "--url" in arguments else ["--url", "http://127.0.0.1:8000"]
        command = self.inside(str(self._executable), *arguments, *url)
        env, pipe = {**CLEAN, "FAASRT_TOKEN": token}, subprocess.PIPE
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)

    def call(self, *arguments: str, token: str = TOKEN) -> tuple[int, str]:
        with self.client(*arguments, token=token) as process:
            stdout, stderr = process.communicate()
        return process.returncode, stdout or stderr

    def languages(self) -> dict[str, Any]:
        code, output = self.call("health", "--json")
        return json.loads(output)["endpoints"][0]["details"].get("languages", {}) if code == 0 else {}

    @contextlib.contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        path = self._folder / "units" / "faasrt.service.d" / "z.conf"
        path.write_text(text)
        try:
            self.systemctl("daemon-reload")
            yield
        finally:
            path.unlink()
            self.systemctl("daemon-reload")

    def until_ready(self) -> None:
        until(lambda: bool(self.languages()), self.log)

    def log(self) -> str:
        return (self._folder / "log").read_text() + (self._folder / "systemd").read_text()


@pytest.fixture(scope="module")
def machine(installation: Path) -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        unit = run(installation / "bin" / "faasrt", "deploy", "systemd")
        assert f"ExecStart={installation}/bin/faasrt serve " in unit
        run("install", "-d", "-m", "700", folder / "etc")
        (folder / "etc" / "token").write_text(TOKEN)
        drop_in = folder / "units" / "faasrt.service.d" / "test.conf"
        drop_in.parent.mkdir(parents=True)
        (folder / "units" / "faasrt.service").write_text(unit)
        # There is no journal, and /etc/faasrt may be that of the machine.
        drop_in.write_text(
            f"[Service]\nLoadCredential=\nLoadCredential=token:{folder}/etc/token\n"
            f"StandardOutput=append:{folder}/log\nStandardError=append:{folder}/log\n"
        )
        (folder / "log").touch()
        flags = ["--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "--kill-child"]
        log = stack.enter_context((folder / "systemd").open("w"))
        command = ["unshare", *flags, "/bin/sh", "-ec", BOOT, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: bool(children.read_text().strip()), (folder / "systemd").read_text)
        started = Machine(folder, installation / "bin" / "faasrt", int(children.read_text()))
        started.until_ready()
        yield started


def test_the_unit_runs_programs_in_the_strongest_jail(machine: Machine) -> None:
    """The settings of the unit leave namespaces intact. The user is one of systemd's, and the token is needed."""
    languages = machine.languages()
    levels = {name: (languages[name]["engine"], languages[name]["level"]) for name in ("python", "javascript")}
    assert levels == {"python": ("native", "namespaces"), "javascript": ("deno", "namespaces")}, languages
    has_controllers = "memory" in Path(f"/proc/{machine.pid}/root/sys/fs/cgroup/cgroup.controllers").read_text()
    assert {state["cgroup"] for state in languages.values()} == {has_controllers}
    _, uid = machine.call("run", "-l", "bash", "-c", "id -u")
    assert uid != "0\n"
    main_pid = machine.property("MainPID")
    status = run(*machine.inside("cat", f"/proc/{main_pid}/status"))
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert 61_184 <= int(fields["Uid"].split("\t")[0]) <= 65_519
    assert (int(fields["CapBnd"], 16), fields["NoNewPrivs"]) == (0, "1")
    assert machine.call("run", "-l", "python", "-c", "print(6 * 7)") == (0, "42\n")
    code, message = machine.call("run", "-l", "python", "-c", "print(6 * 7)", token="wrong")
    assert (code, "token" in message) == (3, True)
    assert TOKEN not in machine.log()


def test_a_restart_waits_for_programs(machine: Machine) -> None:
    """A program in flight has its result, and the next one runs in the new process."""
    before = machine.property("MainPID")
    code = "import time; print('started', flush=True); time.sleep(3); print('ended')"
    with machine.client("run", "-l", "python", "-c", code) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "started\n"
        machine.systemctl("restart", "faasrt")
        assert running.stdout.read() == "ended\n"
    assert running.returncode == 0
    machine.until_ready()
    assert machine.property("MainPID") not in ("0", before)
    assert machine.call("run", "-l", "python", "-c", "print(6 * 7)") == (0, "42\n")


def test_a_reload_reads_the_configuration(machine: Machine) -> None:
    """SIGHUP does not stop the server, because there is a file of its own to read again."""
    before = machine.property("MainPID")
    count = machine.log().count("read the configuration again; changed: nothing")
    machine.systemctl("reload", "faasrt")
    until(lambda: machine.log().count("read the configuration again; changed: nothing") > count, machine.log)
    assert machine.property("MainPID") == before


def test_a_killed_server_is_started_again(machine: Machine) -> None:
    """It runs programs again, as another process."""
    before = machine.property("MainPID")
    run(*machine.inside("kill", "-9", before))
    until(lambda: machine.property("MainPID") not in ("0", before), machine.log)
    machine.until_ready()
    assert machine.call("run", "-l", "python", "-c", "print(6 * 7)") == (0, "42\n")


def test_a_wrong_option_is_not_tried_again(machine: Machine) -> None:
    """The exit code 2 ends the service, until it is started by hand."""
    with machine.drop_in("[Service]\nExecStart=\nExecStart=/bin/sh -c 'exit 2'\n"):
        machine.systemctl("restart", "faasrt")
        until(lambda: machine.property("ActiveState") == "failed", machine.log)
        assert (machine.property("Result"), machine.property("NRestarts")) == ("exit-code", "0")
    machine.systemctl("start", "faasrt")
    machine.until_ready()


def test_the_unit_with_the_files_of_an_operator(machine: Machine, tmp_path: Path) -> None:
    """The service serves HTTPS with a key that only root can read. A reload reads the configuration again."""
    config = "/run/faasrt.toml"  # not in /tmp, which is another folder for the service

    def configure(text: str) -> None:
        run(*machine.inside("sh", "-c", f"umask 022; printf '%s\n' {shlex.quote(text)} > {config}"))

    authority = trustme.CA()
    certificate, cert, key = authority.issue_cert("localhost"), tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tmp_path.chmod(0o700)
    options = ["--config", config, "--tls-cert", str(cert), "--tls-key", str(key), "--memory-max", "3G"]
    unit = machine.print_unit(*options)
    kept = re.findall(r"^(?:ExecStart|LoadCredential=(?:cert|key)|Memory).*", unit, re.MULTILINE)
    assert len(kept) == 5
    configure('host = "127.0.0.1"\nport = 8000')
    with machine.drop_in("[Service]\nExecStart=\n" + "\n".join(kept)):
        machine.systemctl("restart", "faasrt")
        secure = ["--cacert", str(tmp_path / "ca.pem"), "--url", "https://localhost:8000"]
        call = ["run", "-l", "python", "-c", "print(6 * 7)", *secure]
        until(lambda: machine.call(*call) == (0, "42\n"), machine.log)
        configure('host = "127.0.0.1"\nport = 8000\ntimeout-s = 7')
        machine.systemctl("reload", "faasrt")
        until(lambda: "read the configuration again; changed: timeout-s" in machine.log(), machine.log)
        assert machine.property("MemoryMax") == str(3 * 2**30)
    machine.systemctl("restart", "faasrt")
    machine.until_ready()


# ---- images


@pytest.fixture(scope="module")
def store() -> Iterator[list[str]]:
    """Yield options for buildah and podman: a store with an image that stands for python:3.13-slim.

    It is made of packages of Debian, because no registry may be in reach. pip in it has the configuration and the CAs
    of this machine.
    """
    require("buildah", "podman", "crun", "debootstrap", "unshare")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # podman cleans up in processes of its own, after `podman run` has ended.
        stack.callback(until, lambda: not strays(folder), lambda: str(strays(folder)))
        base, options = folder / "base", [f"--root={folder}/store", f"--runroot={folder}/run", "--storage-driver=vfs"]
        packages = "--include=python3,python3-pip,ca-certificates"
        run("debootstrap", "--variant=minbase", packages, "trixie", base)
        for marker in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        (base / "usr/bin/python").symlink_to("python3")
        for name in ("etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
            if Path("/", name).exists():
                shutil.copy(Path("/", name), base / name)
        container = run("buildah", *options, "from", "scratch").strip()
        run("buildah", *options, "add", "--quiet", container, base, "/")
        run("buildah", *options, "commit", "--quiet", container, "docker.io/library/python:3.13-slim")
        run("buildah", *options, "rm", container)
        shutil.rmtree(base)
        yield options


def limits() -> Iterator[str]:
    """The limits of this process, because the tools ask for higher ones, which not every root may have."""
    for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        soft, hard = resource.getrlimit(number)
        yield f"--ulimit={name}={soft}:{hard}"


def build_image(store: list[str], folder: Path, source: str) -> str:
    """Build the image with the commands in the comments of its definition, unless it exists. Return its name."""
    tag, isolation = f"faasrt-{source}:{__version__}", ["--isolation=chroot", "--pull=never", "--layers=false"]
    if run("buildah", *store, "images", "--quiet", "--filter", f"reference={tag}").strip():
        return tag
    code, definition, _ = faasrt("deploy", "containerfile", *(["--wheel"] if source == "wheel" else []))
    assert code == 0
    if source == "wheel":
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT)
    else:
        archive = run("git", "-C", ROOT, "ls-files", "-z", "--", "pyproject.toml", "README.md", "LICENSE", "faasrt")
        for name in archive.split("\0")[:-1]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "Containerfile").write_text(definition)
    run("buildah", *store, "build", *isolation, *limits(), "--tag", tag, "--file", "Containerfile", ".", cwd=folder)
    return tag


@pytest.mark.parametrize("source", ["checkout", "wheel"])
def test_the_image_is_built_and_serves(store: list[str], tmp_path: Path, source: str) -> None:
    """From both sources. The commands are those in its comments, and programs get the strongest jail."""
    tag = build_image(store, tmp_path, source)
    _, definition, _ = faasrt("deploy", "containerfile")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    flags = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"]
    for profile in ("seccomp=unconfined", "apparmor=unconfined", "unmask=ALL"):
        flags += ["--security-opt", profile]
        assert f"--security-opt {profile}" in definition
    # Its own network would need a firewall, which the kernel may lack, and the host's may have another server at 8000.
    flags += [*limits(), "--cgroups=disabled", "--network=none", "--pull=never", "--rm"]
    flags += ["--name", "faasrt-test", "--volume", f"{token}:/run/secrets/faasrt/token:ro"]
    podman = ["podman", *store, "--cgroup-manager=cgroupfs"]
    script = f"{ONLY_CGROUP2}; exec {shlex.join([*podman, 'run', *flags, tag])}"
    log = tmp_path / "log"
    command = ["unshare", "-m", "/bin/sh", "-ec", script]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until(lambda: "python is ready" in log.read_text() and "javascript is ready" in log.read_text(), log.read_text)
        pid = run(*podman, "inspect", "--format", "{{.State.Pid}}", "faasrt-test").strip()
        client = ["nsenter", "-t", pid, "-n", FAASRT]
        url, env = ["--url", "http://127.0.0.1:8000"], {**CLEAN, "FAASRT_TOKEN": TOKEN}
        health = json.loads(run(*client, "health", "--json", *url, env=env))
        languages = health["endpoints"][0]["details"]["languages"]
        levels = {name: (languages[name]["engine"], languages[name]["level"]) for name in ("python", "javascript")}
        assert levels == {"python": ("native", "namespaces"), "javascript": ("deno", "namespaces")}, languages
        program = "import numpy, os; print(numpy.arange(10).sum(), os.getuid() != 0)"
        assert run(*client, "run", "-l", "python", "-c", program, *url, env=env) == "45 True\n"
        assert run(*client, "run", "-l", "js", "-c", "console.log(6 * 7)", *url, env=env) == "42\n"
    finally:
        run(*podman, "kill", "--signal", "TERM", "faasrt-test")
        code = process.wait(timeout=120)
    assert code == 0, log.read_text()
    assert log.read_text().endswith("faasrt: stopping\n")


# By container: the options of podman, and the engine and the level of Python there.
CONTAINERS = {
    "root": (["--user=0", "--env=FAASRT_CACHE_DIR=/tmp/cache"], ["native", "users"]),
    "user": (["--user=10001:10001"], ["wasm", "confined"]),
    "read-only": (
        ["--user=0", "--read-only", "--tmpfs=/tmp", "--env=FAASRT_CACHE_DIR=/tmp/cache"],
        ["native", "users"],
    ),
    "no capabilities": (["--user=10001:10001", "--cap-drop=all"], ["wasm", "confined"]),
    "root without capabilities": (
        ["--user=0", "--cap-drop=all", "--env=FAASRT_CACHE_DIR=/tmp/cache"],
        ["wasm", "confined"],
    ),
}
PROGRAM = """
import asyncio
from faasrt import RuntimeManager
async def main():
    async with RuntimeManager.local(["python"]) as manager:
        result = await manager.run_code("print(6 * 7)", "python")
        print(result.stdout.strip(), result.metadata["engine"], result.metadata["level"])
asyncio.run(main())
"""


def first_program(store: list[str], image: str, options: list[str], before: str = "") -> list[str]:
    """Run a program with the embedded FaaS in a container with podman's own profile. Return its output, the engine and
    the level. `before` is a script that runs first.
    """
    flags = ["--cgroups=disabled", "--network=none", "--pull=never", "--rm", "--entrypoint=python", *limits(), *options]
    command = ["podman", *store, "--cgroup-manager=cgroupfs", "run", *flags, image, "-c", PROGRAM]
    script = f"{before}{ONLY_CGROUP2}; exec {shlex.join(command)}"
    return run("unshare", "-m", "/bin/sh", "-ec", script, timeout=900).split()


@pytest.mark.parametrize(("options", "expected"), CONTAINERS.values(), ids=CONTAINERS)
def test_the_first_program_in_a_container(
    store: list[str], tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    """The result is right, and the level is as high as the container permits."""
    image = build_image(store, tmp_path, "checkout")
    assert first_program(store, image, options) == ["42", *expected]


def test_the_first_program_in_a_container_with_512_mib_and_one_cpu(store: list[str], tmp_path: Path) -> None:
    """Native Python needs no more. The processes of podman count, too."""
    image = build_image(store, tmp_path, "checkout")
    group = Path(f"/sys/fs/cgroup/memory/faasrt-tests-{os.urandom(4).hex()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("this test needs a memory cgroup of version 1")

    def remove() -> bool:
        with contextlib.suppress(OSError):  # processes of podman have not ended
            group.rmdir()
        return not group.exists()

    try:
        (group / "memory.limit_in_bytes").write_text(str(512 * 2**20))
        before = f"echo $$ > {group}/cgroup.procs; taskset --cpu-list --pid 0 $$ > /dev/null; "
        assert first_program(store, image, CONTAINERS["root"][0], before) == ["42", "native", "users"]
    finally:
        until(remove, group.as_posix)
