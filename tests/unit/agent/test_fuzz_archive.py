"""Whatever is called an archive of Podman is imported within its bounds, or refused with a word.

Seeded, so that a failure comes again; `SEED=… pytest` looks elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_agent.archive.importing import import_archive
from migration_agent.archive.names import NotTransferable, relative
from migration_agent.archive.stored import StoredCheckpoint, StoreWriter
from migration_agent.transport.volume import Folder, Volume
from support.archives import CONFIG, SPEC, compressed, contents, file, other, tar_of

SEED = int(os.environ.get("SEED", "7"))
ROUNDS = 150
UID = "0b0e2b8e-1111-4222-8333-444455556666"
KEY = bytes(32)
LIMIT = 4 << 20
NASTY = (
    b"../../../etc/passwd",
    b"/etc/passwd",
    b"\xff\xfe",
    b"x" * 99,
    b"",
    b"7777777\0",
    b"\x80\0\0\0\0\0\0\0\x7f",
    b"-1",
)


def seed() -> bytes:
    """Return a small archive with a bit of everything."""
    named = file("é" * 90, b"long")  # a PAX header of its own
    named[0].pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
    layer = [other("etc", tarfile.DIRTYPE), file("etc/a", b"a"), named, other("l", tarfile.SYMTYPE, "/x")]
    layer += [other("h", tarfile.LNKTYPE, "etc/a"), other("p", tarfile.FIFOTYPE)]
    return tar_of(
        [
            file("config.dump", json.dumps(CONFIG).encode()),
            file("spec.dump", json.dumps(SPEC).encode()),
            other("checkpoint", tarfile.DIRTYPE),
            file("checkpoint/inventory.img", b"inventory"),
            file("rootfs-diff.tar", tar_of(layer)),
            file("deleted.files", b'["/etc/issue"]'),
            file("devshm-checkpoint.tar", tar_of([file("s", b"s")])),
            file("volumes/data.tar", tar_of([file("d", b"d")])),
        ]
    )


def mutants() -> Iterator[bytes]:
    """Yield archives with bytes changed, most of them in headers, whose checksums are made right again."""
    chance = random.Random(SEED)  # noqa: S311  # repeatable
    whole = seed()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    for _ in range(ROUNDS):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 2)):
            at = chance.choice(headers)
            offset = chance.choice((0, 100, 108, 116, 124, 136, 156, 157, 329, 337, 345, chance.randrange(512)))
            what = chance.choice((*NASTY, bytes([chance.choice(b"0123456789xgLKSVZ")])))
            data[at + offset : at + min(512, offset + len(what))] = what[: 512 - offset]
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(struct.unpack("512B", data[at : at + 512]))
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        yield compressed(bytes(data), chance.choice(("none", "none", "gzip", "zstd")))


def test_i8_whatever_is_imported_is_within_its_bounds(tmp_path: Path) -> None:
    volume = Volume(Folder(tmp_path, (tmp_path,)))
    refused = 0
    for number, data in enumerate([compressed(seed(), "zstd"), *mutants()]):
        store = volume.store(UID)
        try:
            import_archive(io.BytesIO(data), "main", StoreWriter(store, KEY, UID), LIMIT)
        except NotTransferable:
            refused += 1
            assert number, "the seed itself is accepted"
            assert store.list() == ()
            continue
        for path, content in contents(StoredCheckpoint(store, KEY, UID)).items():
            if path.endswith(".tar"):
                _demand_harmless(content)
        store.wipe()
    assert 0 < refused < ROUNDS, "some are refused and some are accepted"


def _demand_harmless(layer: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        for member in tar:
            assert relative(member.name) == member.name
            assert member.isreg() or member.isdir() or member.issym() or member.islnk() or member.isfifo()
            if member.islnk():
                assert relative(member.linkname) == member.linkname
            assert 0 <= member.size <= LIMIT


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_what_is_too_short_is_refused(tmp_path: Path, size: int) -> None:
    store = Volume(Folder(tmp_path, (tmp_path,))).store(UID)
    with pytest.raises(NotTransferable):
        import_archive(io.BytesIO(seed()[:size]), "main", StoreWriter(store, KEY, UID), LIMIT)
