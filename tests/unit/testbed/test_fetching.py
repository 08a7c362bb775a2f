"""What comes over the network: fetched ahead, again where it failed, and never older than it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from kind.testbed import ahead, debian, gobuild, host
from kind.testbed.gobuild import MODULES, compilers_at_a_time
from kind.testbed.host import TestbedError

DOWNLOAD = """\
#!/bin/sh
echo "$PWD $*" >> {log}
[ "$(wc -l < {log})" -ge {succeeds_at} ]
"""


def go(folder: Path, monkeypatch: pytest.MonkeyPatch, *, succeeds_at: int) -> Path:
    """A proxy that fails until its so-manieth request; returns the file of all requests."""
    log = folder / "log"
    (folder / "go").write_text(DOWNLOAD.format(log=log, succeeds_at=succeeds_at))
    (folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(gobuild, "FETCH_PAUSE_SECONDS", 0)
    return log


def test_a_proxy_that_fails_for_a_while_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = go(tmp_path, monkeypatch, succeeds_at=3)
    gobuild.fetch(MODULES[0])
    assert log.read_text().splitlines() == [f"{MODULES[0].folder} mod download"] * 3


def test_a_proxy_that_goes_on_failing_is_told_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = go(tmp_path, monkeypatch, succeeds_at=100)
    with pytest.raises(TestbedError, match="go mod download"):
        gobuild.fetch(MODULES[0])
    assert len(log.read_text().splitlines()) == gobuild.FETCH_ATTEMPTS


def test_what_failed_to_come_ahead_stops_neither_the_rest_nor_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    came: list[str] = []

    def fails() -> None:
        raise TestbedError("no route to the mirror")

    with ahead.of_need(fails, lambda: came.append("the next")):
        came.append("the work")
    assert set(came) == {"the next", "the work"}
    assert "no route to the mirror" in capsys.readouterr().err


@pytest.mark.parametrize(("cores", "memory", "expected"), [(1, 20, 2), (2, 20, 2), (8, 30, 8), (8, 9, 4), (8, 1, 2)])
def test_all_cores_compile_as_far_as_there_is_memory(cores: int, memory: float, expected: int) -> None:
    assert compilers_at_a_time(cores, memory) == expected


@pytest.mark.parametrize("packages", [["runc 1.3.6+ds1-1"], ["criu 4.10-1"], ["curl 0.1"], []])
def test_packages_that_are_new_enough_are_taken(packages: list[str]) -> None:
    debian.refuse_old([package.split()[0] for package in packages], packages)


def test_an_old_package_that_nobody_asked_for_is_taken() -> None:
    debian.refuse_old(["podman"], ["podman 5.4.2", "criu 4.1.1-1"])


@pytest.mark.parametrize("package", ["runc 1.1.15+ds1-2", "criu 4.1.1-1"])
def test_a_release_that_is_behind_is_refused(package: str) -> None:
    with pytest.raises(TestbedError, match=r"at least (1\.3|4\.2) is needed"):
        debian.refuse_old(["runc", "criu"], ["libc6 2.41", package])


def test_a_root_says_what_is_installed_in_it(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: criu\nStatus: install ok installed\nVersion: 4.2.1-1\n\n"
        "Package: libc6\nDepends: x (= 1)\nVersion: 2.43-7\nDescription: C\n"
    )
    host.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "root.tar"), "./var"])
    assert debian.installed(tmp_path / "root.tar") == ["criu 4.2.1-1", "libc6 2.43-7"]
