from __future__ import annotations

from pathlib import Path

import pytest

from kind.testbed import limits


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: the kernel's setting, and the folder of the running clusters."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(limits, "RUN", tmp_path / "run")
    monkeypatch.setattr(limits, "BEFORE", tmp_path / "run" / "setting.before")
    monkeypatch.setattr(limits, "INSTANCES", tmp_path / "setting")
    (tmp_path / "setting").write_text("128\n")
    return tmp_path / "setting"


def test_the_last_cluster_restores_what_the_first_one_found(setting: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / "run" / name).mkdir(parents=True)
        limits.raise_them()
    assert int(setting.read_text()) == limits.WANTED
    (tmp_path / "run" / "one").rmdir()
    limits.restore()
    assert int(setting.read_text()) == limits.WANTED
    (tmp_path / "run" / "other").rmdir()
    limits.restore()
    assert int(setting.read_text()) == 128
    assert not (tmp_path / "run").exists()


def test_what_somebody_else_set_meanwhile_stays(setting: Path) -> None:
    limits.raise_them()
    setting.write_text("9999")
    limits.restore()
    assert setting.read_text() == "9999"


def test_a_machine_with_enough_is_left_alone(setting: Path) -> None:
    setting.write_text("8192")
    limits.raise_them()
    limits.restore()
    assert setting.read_text() == "8192"
    assert limits.in_force() == []
