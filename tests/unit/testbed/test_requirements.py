from __future__ import annotations

from dataclasses import replace

import pytest

from kind.testbed import requirements
from kind.testbed.host import TestbedError
from kind.testbed.requirements import Facts, missing_for_cluster, missing_tools

GOOD = Facts(
    root=True,
    go=(1, 26),
    apt=True,
    keyring=True,
    checkpoint_restore=True,
    overlay=True,
    memory=20,
    cache_disk=50,
    state_disk=50,
    same_disk=True,
    cold=True,
)
BARE = Facts(
    root=False,
    go=None,
    apt=False,
    keyring=False,
    checkpoint_restore=False,
    overlay=False,
    memory=0.5,
    cache_disk=1,
    state_disk=2,
    same_disk=False,
    cold=True,
)


def test_a_good_machine_lacks_nothing() -> None:
    assert missing_tools(GOOD, packages=True) == []
    assert missing_for_cluster(GOOD, packages=True, workers=2) == []


def test_everything_missing_is_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed() -> None:
        pytest.fail("something was installed")

    monkeypatch.setattr(requirements, "facts", lambda: BARE)
    monkeypatch.setattr(requirements.debian, "install_missing", changed)
    with pytest.raises(TestbedError) as refusal:
        requirements.require_for_cluster(packages=True, workers=2)
    lines = str(refusal.value).splitlines()[1:]
    for word in ("root", "Go >= 1.26", "apt", "CHECKPOINT_RESTORE", "overlayfs", "memory", "/var/lib/", ".cache"):
        assert any(word in line for line in lines), word


def test_an_old_go_is_told_with_its_version() -> None:
    [line] = missing_tools(replace(GOOD, go=(1, 25)), packages=True)
    assert "1.25" in line
    assert "1.26" in line


def test_with_an_engine_that_pulls_neither_apt_nor_disk_for_building_is_needed() -> None:
    found = replace(GOOD, apt=False, keyring=False, cache_disk=2, state_disk=2)
    assert missing_tools(found, packages=False) == []
    assert missing_for_cluster(found, packages=False, workers=2) == []


@pytest.mark.parametrize(("same", "free", "enough"), [(True, 16.6, True), (True, 16.4, False), (False, 12.1, True)])
def test_one_disk_must_have_room_for_both(same: bool, free: float, enough: bool) -> None:
    found = replace(GOOD, same_disk=same, cache_disk=free, state_disk=free)
    assert (missing_for_cluster(found, packages=True, workers=2) == []) is enough


def test_more_workers_need_more() -> None:
    found = replace(GOOD, memory=3.1)
    assert missing_for_cluster(found, packages=False, workers=2) == []
    assert len(missing_for_cluster(found, packages=False, workers=9)) == 1


def test_a_warm_cache_needs_less_disk() -> None:
    found = replace(GOOD, cache_disk=8, state_disk=8)
    assert missing_for_cluster(replace(found, cold=False), packages=True, workers=2) == []
    assert len(missing_for_cluster(found, packages=True, workers=2)) == 1


def test_this_machine_can_be_asked() -> None:
    found = requirements.facts()
    assert found.memory > 0
    assert found.cache_disk > 0
