from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kind.testbed import places, versions
from kind.testbed.cli import guarded, parser
from kind.testbed.gobuild import MODULES, node_modules
from kind.testbed.host import CommandError, TestbedError, contained, run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for scratch folders, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return places.cache("making", "any").parent


def abandoned(folder: Path) -> Path:
    folder.mkdir()
    (folder / "big").write_text("much")
    os.utime(folder, (0, 0))
    return folder


def test_what_a_killed_command_left_is_removed_and_what_is_in_use_stays(work: Path) -> None:
    with places.scratch() as used:
        os.utime(used, (0, 0))
        dead = abandoned(work / "dead")
        new = work / "new"
        new.mkdir()
        with places.scratch():
            assert used.is_dir()
            assert new.is_dir()
            assert not dead.exists()
    assert not used.exists()


def test_a_folder_that_another_command_ends_with_just_now_is_no_trouble(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = abandoned(work / "dead")

    def listed(_: Path) -> Iterator[Path]:
        return iter([work / "renamed-meanwhile", dead])

    monkeypatch.setattr(Path, "iterdir", listed)
    with places.scratch():
        assert not dead.exists()


def test_a_cached_result_is_whole_or_not_there(work: Path, tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with places.finished(tmp_path / "result") as out:
            (out / "half").touch()
            raise TestbedError

    with pytest.raises(TestbedError):
        fail_half_way()
    assert not (tmp_path / "result").exists()
    with places.finished(tmp_path / "result") as out:
        (out / "all").touch()
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["all"]


def test_a_digest_depends_on_names_contents_and_modes(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    file = folder / "file"
    seen: set[str] = set()
    for text, mode in (("a", 0o644), ("b", 0o644), ("b", 0o755)):
        file.write_text(text)
        file.chmod(mode)
        seen.add(places.digest(folder))
    file.rename(folder / "renamed")
    seen.add(places.digest(folder))
    assert len(seen) == 4
    assert places.digest("ab", "c") != places.digest("a", "bc")


@pytest.mark.parametrize("folder", sorted(versions.GO_MODULES))
def test_the_versions_are_those_of_the_modules(folder: str) -> None:
    path, version = versions.GO_MODULES[folder]
    words = (places.SOURCES / "modules" / folder / "go.mod").read_text().split()
    assert words[words.index(path) + 1] == version
    assert folder in {module.name for module in MODULES}


def test_another_containerd_changes_only_its_own_part() -> None:
    old, new = ({module.name for module in node_modules(series)} for series in ("2.1", "2.4"))
    assert old ^ new == {"containerd-2.1", "containerd-2.4"}


def test_a_command_that_fails_is_named_without_its_containment() -> None:
    with pytest.raises(CommandError) as failure:
        run(contained("sh", "-c", "echo the reason >&2; exit 3"))
    assert str(failure.value).splitlines() == ["`sh -c echo the reason >&2; exit 3` exited with 3:", "    the reason"]


def test_a_command_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(TestbedError, match="`no-such-command` cannot be run"):
        run(["no-such-command"])


def test_a_verbatim_verb_keeps_its_options() -> None:
    assert guarded(["--name", "x", "kubectl", "get", "-o", "json"]) == [
        *("--name", "x", "kubectl", "--", "get", "-o", "json")
    ]
    assert guarded(["up", "--workers", "3"]) == ["up", "--workers", "3"]


@pytest.mark.parametrize("name", ["../x", "", "A", "-x", "x.y", "x" * 40])
def test_a_name_that_is_no_name_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([f"--name={name}", "status"])
    assert "small letters" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--containerd", "3.0"], ["--workers", "0"]])
def test_a_wrong_choice_is_refused_before_anything_is_built(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["up", *options])
