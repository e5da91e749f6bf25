"""The levels of the jail: their table in the guide, and how to get a higher one."""

from __future__ import annotations

from pathlib import Path

import pytest

from faasrt.local.jail.level import LEVELS, FoundLevel, remedy_of
from support.package import ROOT


def test_the_guide_has_the_table_of_levels() -> None:
    """The guide, the log and `faasrt serve` state the same facts about a level."""
    text = (ROOT / "faasrt/docs/sandboxes.md").read_text()
    (lines,) = [block for block in text.split("\n\n") if block.startswith("| level |")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]]
    expected = [
        [f"`{name}`", level.needs, level.protection, f"`{level.python}`", level.misses]
        for name, level in LEVELS.items()
    ]
    assert rows == expected


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("users", "OSError: only root can run each program as a user of its own", "run the server as root"),
        ("users", "OSError: root needs CAP_KILL to run each program as a user", "Docker's default capabilities"),
        ("users", "OSError: the kernel has no Landlock", "use Linux 5.13 or newer with Landlock"),
        ("filters", "OSError: the kernel has no Landlock", "use Linux 5.13 or newer with Landlock"),
        ("filters", "OSError: root needs the capability CAP_KILL to end programs", "as another user than root"),
        ("namespaces", "the kernel refuses a new /proc, and has no Landlock to hide it", "with Landlock"),
        ("namespaces", "OSError: unshare: Operation not permitted", "in a container, use the options of"),
    ],
)
def test_a_level_that_does_not_work_has_a_remedy(tmp_path: Path, name: str, problem: str, remedy: str) -> None:
    assert remedy in remedy_of(name, problem, tmp_path)


@pytest.mark.parametrize(
    ("uid", "setting", "value", "command"),
    [
        (0, "user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        (1, "user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        (1, "user/max_user_namespaces", "100", ""),
        (0, "kernel/unprivileged_userns_clone", "0", ""),
        (1, "kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (0, "kernel/apparmor_restrict_unprivileged_userns", "1", ""),
        (1, "kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        (1, "kernel/apparmor_restrict_unprivileged_userns", "0", ""),
    ],
)
def test_a_setting_of_the_kernel_that_forbids_user_namespaces_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, setting: str, value: str, command: str
) -> None:
    """Only those that restrict the user of the server."""
    monkeypatch.setattr("os.geteuid", lambda: uid)
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(f"{value}\n")
    remedy = remedy_of("namespaces", "OSError: unshare: Operation not permitted", tmp_path)
    assert command in remedy
    assert command or "sysctl" not in remedy


def test_a_lower_level_is_described_with_its_protection_and_the_remedy() -> None:
    text = FoundLevel("filters", "level users: not root", "for users, run the server as root").describe()
    assert text.startswith(
        f"the level of the jail is filters: programs are separated by {LEVELS['filters'].protection}. They miss "
    )
    assert text.endswith("To get a higher one: for users, run the server as root (level users: not root)")
