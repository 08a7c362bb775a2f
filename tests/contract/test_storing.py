"""A checkpoint that nobody receives: the real sender puts it into a real volume, whole, and readable with its key."""

from __future__ import annotations

import threading
from pathlib import Path

from pydantic import SecretStr

from migration_agent.archive.stored import StoredCheckpoint
from migration_agent.peer_client import PeerClient
from migration_agent.ports import Progress, Sending, Stop
from migration_agent.transport.volume import Folder, Volume
from migration_api.shipping import Shipping
from support.agent import MIGRATION, SHIPPING
from support.archives import contents
from support.transfer import Nodes, make_checkpoint

UID = "5f0c7c1e-0000-4000-8000-0000000000ff"


def test_it_lies_whole_in_its_store_also_when_it_is_sent_again(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    volume = Volume(Folder(tmp_path / "volume", (tmp_path,)))
    directory = make_checkpoint(tmp_path / "dumped" / MIGRATION, pages=bytes(1 << 20) + b"memory" * 400_000)
    complete, progress = threading.Event(), Progress()
    complete.set()
    client = PeerClient(Nodes(tmp_path / "nodes").trust, lambda uid, _shipping: volume.store(uid))
    shipping = Shipping(key=SecretStr(SHIPPING.key.get_secret_value()))
    for _ in range(2):
        client.send(Sending(None, UID, directory, shipping, complete, Stop(), progress))
        found = contents(StoredCheckpoint(volume.store(UID), SHIPPING.key_bytes, UID))
        files = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
        assert found.keys() <= files.keys()
        assert "main/images/inventory.img" in found
        assert all(content == files[path].read_bytes() for path, content in found.items())
        assert progress.done == sum(map(len, found.values()))
