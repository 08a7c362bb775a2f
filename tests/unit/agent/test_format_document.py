"""docs/checkpoint-format.md against the code: a reader written from the page alone reads what the code seals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from migration_agent.transport.chunks import Header as OurHeader
from migration_agent.transport.chunks import Opener, Seal, Sealer, blob_name, packed
from migration_agent.transport.manifest import Manifest, ManifestEntry, sealed_manifest

PAGE = (Path(__file__).parents[3] / "docs/checkpoint-format.md").read_text()
VECTORS = dict(re.findall(r"^\| (.+?) \| `([0-9a-f]+)` \|$", PAGE, re.MULTILINE))
KEY = bytes.fromhex(re.findall(r"^Key `([0-9a-f]{64})`", PAGE, re.MULTILINE)[0])
UID = "0b0e2b8e-1111-4222-8333-444455556666"
INVENTORY = "main/images/inventory.img"
PAGES = "main/images/pages-1.img"


def key(use: str) -> AESGCM:
    info = f"container-migration/1 {use}".encode()
    return AESGCM(HKDF(SHA256(), 32, salt=UID.encode(), info=info).derive(KEY))


def associated(blob: bytes, path: str) -> bytes:
    return b"container-migration/1 " + blob[:28] + UID.encode() + b"\0" + path.encode()


def read_chunk(blob: bytes, path: str) -> bytes:
    """Read a chunk as the page says, with none of the code's own functions."""
    magic, version, encoding, zero, entry, index, plain, sealed, nonce = struct.unpack(">4sBBH8sIII12s", blob[:40])
    assert (magic, version, zero, len(blob)) == (b"CMCK", 1, 0, 40 + sealed)
    assert entry == hashlib.sha256(path.encode()).digest()[:8]
    assert blob_name(path, index) == f"{entry.hex()}-{index:08x}"
    content = key("chunk").decrypt(nonce, blob[40:], associated(blob, path))
    unpacked = {0: lambda: content, 1: lambda: zstandard.decompress(content), 2: lambda: bytes(plain)}[encoding]()
    assert len(unpacked) == plain
    return unpacked


def digest(nonce: bytes, plain: bytes) -> bytes:
    return key("digest").encrypt(nonce, b"", plain)


@pytest.mark.parametrize(
    ("name", "path", "index", "plain"),
    [
        (f"chunk 0 of `{INVENTORY}`, the 9 bytes `inventory`", INVENTORY, 0, b"inventory"),
        (f"chunk 2 of `{PAGES}`, 4096 zero bytes", PAGES, 2, bytes(4096)),
    ],
)
def test_the_vectors_are_what_page_and_code_say(name: str, path: str, index: int, plain: bytes) -> None:
    blob = bytes.fromhex(VECTORS[name])
    assert read_chunk(blob, path) == plain
    header = OurHeader.parse(blob[:40])
    record, opened = Opener(Seal(KEY, UID)).opened(header, path, memoryview(blob)[40:])
    assert (header.index, bytes(opened)) == (index, plain)
    assert record == (blob[28:40], digest(blob[28:40], plain))
    assert f"| its digest | `{record.digest.hex()}` |" in PAGE
    if index:
        assert VECTORS["its associated data"] == associated(blob, path).hex()


def test_the_manifest_vector() -> None:
    text = f'{{"migration":"{UID}"}}'
    blob = bytes.fromhex(VECTORS[f"the manifest `{text}` (too short to be one), sealed"])
    assert blob[:8] == b"CMMF\x01\0\0\0"
    assert key("manifest").decrypt(blob[8:20], blob[20:], blob[:8] + UID.encode()) == text.encode()


@pytest.mark.parametrize("plain", [b"x" * 70_000, bytes(5000), bytes(range(256)) * 16])
def test_the_page_reads_what_the_code_seals(plain: bytes) -> None:
    seal = Seal(KEY, UID)
    packed_chunk = zstandard.ZstdCompressor().compress(plain)
    record, blob = Sealer(seal).sealed(PAGES, 0, memoryview(plain), packed_chunk)
    assert read_chunk(bytes(blob), PAGES) == plain
    assert record.digest == digest(record.nonce, plain)
    entry = ManifestEntry(path=PAGES, size=len(plain), chunks=base64.b64encode(packed([record])).decode())
    manifest = sealed_manifest(seal, Manifest(migration=UID, entries=(entry,)))
    content = key("manifest").decrypt(manifest[8:20], manifest[20:], manifest[:8] + UID.encode())
    assert json.loads(content) == {
        "version": 1,
        "migration": UID,
        "chunkBytes": 1048576,
        "entries": [{"path": PAGES, "size": len(plain), "mode": 384, "chunks": entry.chunks}],
    }
