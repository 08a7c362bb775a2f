"""I7: a migration's key is kept where only root reads it and no disk holds it, and is shown nowhere else."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from migration_agent.journal import SourceRecord, TargetRecord
from migration_agent.vault import OtherKey, Vault
from migration_api.shipping import Shipping, Stays, StoreAccess
from migration_api.transport import SharedVolume
from migration_api.wire import SourceRequest
from support.agent import MIGRATION, SHIPPING, journal_at, source_request, target_request

KEY = SHIPPING.key.get_secret_value()
OTHER = Shipping(key=SecretStr(base64.b64encode(bytes(32)).decode()))


def test_i7_the_key_is_kept_private_for_the_next_life_and_wiped(tmp_path: Path) -> None:
    vault = Vault(journal_at(tmp_path).layout)
    assert vault.shipping(MIGRATION) is None
    vault.keep(MIGRATION, SHIPPING)
    assert Vault(vault.layout).shipping(MIGRATION) == SHIPPING
    path = vault.layout.shipping(MIGRATION)
    assert path.is_relative_to(vault.layout.run)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    vault.keep(MIGRATION, SHIPPING.model_copy(update={"compression": False}))
    kept = vault.shipping(MIGRATION)
    assert kept is not None
    assert not kept.compression
    with pytest.raises(OtherKey):
        vault.keep(MIGRATION, OTHER)
    vault.wipe(MIGRATION)
    assert list(path.parent.iterdir()) == []


def test_i7_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    vault = Vault(journal_at(tmp_path).layout)
    vault.sweep(())
    vault.keep("kept", SHIPPING)
    vault.keep("ended", SHIPPING)
    (vault.layout.run / "shipping/.half.new").write_text(KEY)
    vault.sweep({"kept"})
    assert vault.shipping("kept") == SHIPPING
    assert sorted(path.name for path in (vault.layout.run / "shipping").iterdir()) == ["kept"]


@pytest.mark.parametrize(
    ("stays", "well", "cleared"),
    [
        (Stays.NEVER, True, True),
        (Stays.NEVER, False, True),
        (Stays.WHEN_IT_ENDED_WELL, True, False),
        (Stays.WHEN_IT_ENDED_WELL, False, True),
        (Stays.ALWAYS, True, False),
        (Stays.ALWAYS, False, False),
    ],
)
def test_a_store_is_cleared_unless_what_lies_there_stays(
    tmp_path: Path, stays: Stays, *, well: bool, cleared: bool
) -> None:
    vault = Vault(journal_at(tmp_path).layout)
    store = StoreAccess(shared_volume=SharedVolume(path="/mnt/shared"))
    vault.keep(MIGRATION, SHIPPING.model_copy(update={"stays": stays, "store": store}))
    vault.wipe(MIGRATION, well=well)
    assert vault.shipping(MIGRATION) is None
    assert vault.owed() == ({MIGRATION: store} if cleared else {})
    vault.keep(MIGRATION, SHIPPING)
    assert vault.owed() == {}, "a request that comes again begins anew"


def test_i7_the_key_is_shown_only_on_purpose(tmp_path: Path) -> None:
    request = source_request()
    for text in (repr(request), str(request), request.model_dump_json(), str(request.dump()), repr(request.shipping)):
        assert KEY not in text
    assert SourceRequest.model_validate(request.dump(reveal=True)) == request
    journal = journal_at(tmp_path)
    journal.save(SourceRecord(request=request, boot_id="b"))  # even when somebody forgets `.task`
    journal.save(TargetRecord(request=target_request(), boot_id="b"))
    assert all(KEY not in path.read_text() for path in journal.layout.migration(MIGRATION).iterdir())
    assert journal.source(MIGRATION) == SourceRecord(request=request.task, boot_id="b")


@pytest.mark.parametrize("key", ["", "short", "A" * 44, base64.b64encode(bytes(31)).decode(), KEY + "\n", "ä" * 44])
def test_i8_what_is_no_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValidationError, match="not 32 bytes in base64") as raised:
        SourceRequest.model_validate({**source_request().dump(), "shipping": {"key": key}})
    assert not key or key not in str(raised.value)
