"""Stores as an agent opens, tries and clears them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migration_agent.clearing import Clearing
from migration_agent.places import Places
from migration_agent.transport.store import HOME, StoreFailure
from migration_agent.vault import Vault
from migration_api.shipping import ProbeProblem, ProbeStep, Shipping, StoreAccess, StoreProbe
from migration_api.transport import SharedVolume
from support.agent import SHIPPING, journal_at

UID = "5f0c7c1e-0000-4000-8000-0000000000ff"
CONTENT = "0123456789abcdef"


def access(path: Path) -> StoreAccess:
    return StoreAccess(shared_volume=SharedVolume(path=str(path)))


def probe(step: ProbeStep, path: Path, content: str = CONTENT) -> StoreProbe:
    return StoreProbe(uid=UID, step=step, content=content, store=access(path))


def places(node: str, *paths: Path) -> Places:
    return Places(node, paths)


def test_a_migration_without_a_store_has_none(tmp_path: Path) -> None:
    assert places("a", tmp_path).store_of(UID, SHIPPING) is None
    shipping: Shipping = SHIPPING.model_copy(update={"store": access(tmp_path)})
    store = places("a", tmp_path).store_of(UID, shipping)
    assert store is not None
    store.put("chunk-1", b"one")
    assert (tmp_path / HOME / UID / "chunk-1").read_bytes() == b"one"
    with pytest.raises(StoreFailure, match="allowedPaths"):
        places("a").store(access(tmp_path), UID).put("chunk-1", b"one")


def test_two_nodes_that_see_the_same_directory(tmp_path: Path) -> None:
    a, b, c = (places(name, tmp_path) for name in "abc")
    assert a.probe(probe(ProbeStep.WRITE, tmp_path)).problem is None
    assert b.probe(probe(ProbeStep.READ, tmp_path)).problem is None
    assert c.probe(probe(ProbeStep.READ, tmp_path)).problem is None
    assert len(list((tmp_path / HOME / UID).iterdir())) == 3
    assert a.probe(probe(ProbeStep.REMOVE, tmp_path)).problem is None
    assert list((tmp_path / HOME).iterdir()) == []


def test_two_nodes_that_do_not(tmp_path: Path) -> None:
    """The same path, but on the other node another volume, or the bare directory under a mount point."""
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
    assert places("a", here).probe(probe(ProbeStep.WRITE, here)).problem is None
    assert places("b", there).probe(probe(ProbeStep.READ, there)).problem is ProbeProblem.NOT_SHARED
    assert places("c", there).probe(probe(ProbeStep.WRITE, there, "another content!")).problem is None
    assert places("b", there).probe(probe(ProbeStep.READ, there)).problem is ProbeProblem.NOT_SHARED


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    for step in ProbeStep:
        report = places("a").probe(probe(step, tmp_path))
        assert report.problem is ProbeProblem.UNUSABLE
        assert "allowedPaths" in report.message
    gone = places("a", tmp_path).probe(probe(ProbeStep.WRITE, tmp_path / "gone"))
    assert gone.problem is ProbeProblem.UNUSABLE
    assert "is not there: mount it" in gone.message


def test_the_end_of_one_clears_what_others_left_long_ago(tmp_path: Path) -> None:
    old, live, fresh = (f"5f0c7c1e-0000-4000-8000-00000000000{n}" for n in range(3))
    it = Places("a", (tmp_path,), leftover_seconds=3600)
    for uid in (UID, old, live, fresh):
        it.store(access(tmp_path), uid).put("chunk-1", b"")
    for uid in (old, live):
        os.utime(tmp_path / HOME / uid, (0, 0))
    assert it.clear(access(tmp_path), UID, {live}) == (old,)
    assert {path.name for path in (tmp_path / HOME).iterdir()} == {live, fresh}


def vault_with(tmp_path: Path, volume: Path) -> Vault:
    vault = Vault(journal_at(tmp_path).layout)
    vault.keep(UID, SHIPPING.model_copy(update={"store": access(volume)}))
    return vault


def test_the_store_of_an_ended_migration_is_cleared_also_by_the_agent_s_next_life(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    it, vault = Places("a", (volume,)), vault_with(tmp_path, volume)
    it.store(access(volume), UID).put("chunk-1", b"")
    assert Clearing(vault, it, tuple).once()
    assert (volume / HOME / UID).exists(), "it has not ended"
    vault.wipe(UID)
    assert vault.owing.is_set()
    owed = Vault(vault.layout)
    path = owed.layout.clearing(UID)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SHIPPING.key.get_secret_value() not in path.read_text()
    assert Clearing(owed, it, tuple).once()
    assert list((volume / HOME).iterdir()) == []
    assert owed.owed() == {}


def test_a_store_that_is_away_is_cleared_later_and_one_that_is_refused_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, it = vault_with(tmp_path, tmp_path), Places("a", (tmp_path,))
    vault.wipe(UID)

    def away(*_: object) -> tuple[str, ...]:
        raise StoreFailure("the store is away", passing=True)

    with monkeypatch.context() as patch:
        patch.setattr(Places, "clear", away)
        assert not Clearing(vault, it, tuple).once()
    assert set(vault.owed()) == {UID}
    assert "the store is away" in caplog.text
    assert Clearing(vault, Places("a"), tuple).once()
    assert vault.owed() == {}
    assert "allowedPaths" in caplog.text
