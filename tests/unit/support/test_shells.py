"""Shells that are kept for the tests of a cluster, here without one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.shells import ShellGoneError, Shells

SH = ("sh",)


@pytest.fixture
def shells() -> Iterator[Shells]:
    it = Shells()
    yield it
    it.close()


def test_code_and_both_streams_are_the_script_s_own(shells: Shells) -> None:
    for _ in range(3):
        done = shells.run(SH, "echo out; printf err >&2; exit 3", 10)
        assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err")
    assert shells.run(SH, "true", 10).stdout == ""


def test_quotes_lines_and_much_output_come_through(shells: Shells) -> None:
    done = shells.run(SH, "cat <<'E'\nit's \"$HOME\"\nE\nhead -c 3000000 /dev/zero | tr '\\0' x; cat", 10)
    assert done.stdout == 'it\'s "$HOME"\n' + "x" * 3_000_000


def test_one_that_is_kept_is_used_again(shells: Shells) -> None:
    assert len({shells.run(SH, "echo $PPID", 10).stdout for _ in range(3)}) == 1


def test_one_that_died_meanwhile_is_replaced(shells: Shells) -> None:
    pid = shells.run(SH, "echo $PPID", 10).stdout.strip()
    subprocess.run(("kill", "-9", pid), check=True)
    assert shells.run(SH, "echo again", 10).stdout == "again\n"


def test_a_script_that_may_have_begun_is_not_run_twice(shells: Shells, tmp_path: Path) -> None:
    file = tmp_path / "began"
    with pytest.raises(AssertionError, match="while this ran"):
        shells.run(SH, f"echo x >> {file}; kill -9 $PPID", 10)
    assert file.read_text() == "x\n"


def test_a_script_that_does_not_end_in_time_is_told_of_and_the_next_one_runs(shells: Shells) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        shells.run(SH, "sleep 60", 0.3)
    assert shells.run(SH, "echo next", 10).stdout == "next\n"


def test_a_shell_that_cannot_be_had_says_why(shells: Shells) -> None:
    with pytest.raises(ShellGoneError, match="no such node"):
        shells.run(("sh", "-c", "echo no such node >&2; exit 1"), "true", 10)
