from __future__ import annotations

import stat
from pathlib import Path

import pytest

from migration_agent.host import Host
from migration_agent.install import InstallFailure, install


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in ("bin/criu", "bin/runc-migratable", "criu/libc.so.6"):
        file = tmp_path / "dist" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name} 1")
        file.chmod(0o600)
    return tmp_path / "dist"


def installed(tmp_path: Path) -> dict[str, Path]:
    root = tmp_path / "node/opt/container-migration"
    return {str(file.relative_to(root)): file for file in root.rglob("*") if file.is_file()}


def test_everything_is_copied_and_executable(image: Path, tmp_path: Path) -> None:
    install(Host(tmp_path / "node"), image)
    files = installed(tmp_path)
    assert {name: file.read_text() for name, file in files.items()} == {
        "bin/criu": "bin/criu 1",
        "bin/runc-migratable": "bin/runc-migratable 1",
        "criu/libc.so.6": "criu/libc.so.6 1",
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o755}


def test_equal_files_stay_and_changed_ones_get_a_new_inode(image: Path, tmp_path: Path) -> None:
    host = Host(tmp_path / "node")
    install(host, image)
    before = {name: file.stat().st_ino for name, file in installed(tmp_path).items()}
    (image / "bin/criu").write_text("bin/criu 2")
    with installed(tmp_path)["bin/criu"].open() as running:
        install(host, image)
        assert running.read() == "bin/criu 1", "a binary that runs keeps its content"
    after = {name: file.stat().st_ino for name, file in installed(tmp_path).items()}
    assert {name for name in before if before[name] != after[name]} == {"bin/criu"}
    assert installed(tmp_path)["bin/criu"].read_text() == "bin/criu 2"


def test_an_interrupted_copy_is_no_obstacle(image: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "node/opt/container-migration/bin/.criu.new"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half a binary, and longer than the whole")
    install(Host(tmp_path / "node"), image)
    assert installed(tmp_path)["bin/criu"].read_text() == "bin/criu 1"
    assert not leftover.exists()


def test_an_image_without_files_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(InstallFailure, match="not the agent's image"):
        install(Host(tmp_path), tmp_path / "missing")


def test_a_place_that_cannot_be_written_is_named(image: Path, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node/opt").write_text("a file in the way")
    with pytest.raises(InstallFailure, match=r"opt/container-migration.*could not be installed"):
        install(Host(tmp_path / "node"), image)
