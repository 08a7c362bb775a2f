"""The sealed chunk: a piece of one entry, compressed or not, encrypted and bound to its place.

Byte layout, associated data and test vectors stand in docs/checkpoint-format.md. The digest is a keyed one (GMAC): it
costs a twelfth of SHA-256, and a checkpoint is never believed without its key anyway.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

VERSION = 1
CHUNK_BYTES = 1024 * 1024
"""What this sender cuts; a multiple of the page size. The whole of a chunk stays in a core's second cache."""
CHUNK_BYTES_MAX = 4 * 1024 * 1024
TAG_BYTES = 16
NONCE_BYTES = 12
ENTRY_BYTES = 8

_HEADER = struct.Struct(f">4sBBH{ENTRY_BYTES}sIII{NONCE_BYTES}s")
HEADER_BYTES = _HEADER.size
_BOUND_BYTES = HEADER_BYTES - NONCE_BYTES
_MAGIC = b"CMCK"
_CONTEXT = b"container-migration/1 "
_ZEROS = bytes(CHUNK_BYTES_MAX)
INDEX_MAX = 2**32 - 1


class FormatError(Exception):
    """A checkpoint, or a part of one, that must not be used; the message is for an admin and names the part."""


class Encoding(IntEnum):
    """What is encrypted."""

    PLAIN = 0
    ZSTD = 1
    ZEROS = 2
    """Nothing: all bytes of the chunk are zero."""


class Record(NamedTuple):
    """What a manifest says of a chunk."""

    nonce: bytes
    digest: bytes
    """GMAC of the plain chunk under the digest key, with the nonce of its encryption."""


RECORD_BYTES = NONCE_BYTES + TAG_BYTES


def packed(records: list[Record]) -> bytes:
    """Return records as they stand in a manifest: one after another."""
    return b"".join(nonce + digest for nonce, digest in records)


def unpacked(content: bytes) -> list[Record]:
    """Return the records in a manifest's field.

    Raises:
        FormatError: it does not hold whole records.
    """
    if len(content) % RECORD_BYTES:
        raise FormatError(f"{len(content)} bytes are not a number of whole chunk records")
    return [
        Record(content[at : at + NONCE_BYTES], content[at + NONCE_BYTES : at + RECORD_BYTES])
        for at in range(0, len(content), RECORD_BYTES)
    ]


def entry_tag(path: str) -> bytes:
    """Return what stands for an entry in its chunks' headers; the path itself is bound, but not shown."""
    return hashlib.sha256(path.encode()).digest()[:ENTRY_BYTES]


def blob_name(path: str, index: int) -> str:
    """Return the name of a chunk in a store."""
    return f"{entry_tag(path).hex()}-{index:08x}"


@dataclass(frozen=True)
class Header:
    """What stands before a sealed chunk, in the clear and authenticated."""

    entry: bytes
    index: int
    plain: int
    """Bytes of the chunk."""
    sealed: int
    """Bytes that follow: what is encrypted, and the tag."""
    encoding: Encoding
    nonce: bytes

    def bytes(self) -> bytes:
        return _HEADER.pack(
            _MAGIC, VERSION, self.encoding, 0, self.entry, self.index, self.plain, self.sealed, self.nonce
        )

    @classmethod
    def parse(cls, content: bytes | bytearray | memoryview) -> Header:
        """Read a header; every size in it is within bounds when this returns.

        Raises:
            FormatError: it is none.
        """
        if len(content) != HEADER_BYTES:
            raise FormatError(f"a chunk's header has {HEADER_BYTES} bytes, not {len(content)}")
        magic, version, encoding, reserved, entry, index, plain, sealed, nonce = _HEADER.unpack(content)
        if magic != _MAGIC or version != VERSION or reserved != 0 or encoding not in set(Encoding):
            raise FormatError(f"what came is no chunk of format version {VERSION}")
        body = {Encoding.PLAIN: range(plain, plain + 1), Encoding.ZSTD: range(1, plain), Encoding.ZEROS: range(1)}
        if not 0 < plain <= CHUNK_BYTES_MAX or sealed - TAG_BYTES not in body[Encoding(encoding)]:
            raise FormatError(f"a chunk of {plain} bytes cannot have {sealed} bytes sealed")
        return cls(entry, index, plain, sealed, Encoding(encoding), nonce)


class Seal:
    """One migration's keys; may be used in several threads."""

    def __init__(self, key: bytes, migration: str) -> None:
        """Derive the keys for chunks, digests and manifest: none of them is used for anything else."""
        self._migration = migration.encode()
        self._chunk, self._digest, self._manifest = (
            AESGCM(HKDF(SHA256(), 32, salt=self._migration, info=_CONTEXT + use).derive(key))
            for use in (b"chunk", b"digest", b"manifest")
        )

    def digest(self, nonce: bytes, plain: bytes | bytearray | memoryview) -> bytes:
        """Return the keyed digest of a chunk."""
        return self._digest.encrypt(nonce, b"", plain)

    def encrypt(self, header: Header, path: str, content: bytes | memoryview, into: memoryview) -> None:
        """Write the sealed form, `header.sealed` bytes."""
        self._chunk.encrypt_into(header.nonce, content, self._place(header, path), into)

    def decrypt(self, header: Header, path: str, sealed: memoryview, into: memoryview) -> None:
        """Write what was encrypted, `header.sealed` less the tag.

        Raises:
            FormatError: it was damaged, or belongs to another place, migration or key.
        """
        try:
            self._chunk.decrypt_into(header.nonce, sealed, self._place(header, path), into)
        except InvalidTag:
            raise FormatError(
                f"entry {path}, chunk {header.index} is not authentic: it was damaged, or belongs to another entry, "
                "chunk or migration, or was sealed with another key"
            ) from None

    def encrypt_manifest(self, nonce: bytes, content: bytes, bound: bytes) -> bytes:
        return self._manifest.encrypt(nonce, content, bound + self._migration)

    def decrypt_manifest(self, nonce: bytes, content: bytes, bound: bytes) -> bytes:
        """Return the manifest's content.

        Raises:
            FormatError: it is not authentic.
        """
        try:
            return self._manifest.decrypt(nonce, content, bound + self._migration)
        except InvalidTag:
            raise FormatError(
                "the manifest is not authentic: it was damaged, belongs to another migration, or was sealed with "
                "another key"
            ) from None

    def _place(self, header: Header, path: str) -> bytes:
        return _CONTEXT + header.bytes()[:_BOUND_BYTES] + self._migration + b"\0" + path.encode()


@dataclass
class Sealer:
    """Seals chunks one after another; for one thread."""

    seal: Seal
    _into: memoryview = field(
        default_factory=lambda: memoryview(bytearray(HEADER_BYTES + CHUNK_BYTES_MAX + TAG_BYTES)), repr=False
    )

    def sealed(self, path: str, index: int, plain: memoryview, packed: bytes | None) -> tuple[Record, memoryview]:
        """Return the record of a chunk and its sealed form, header first, which is good until the next call.

        Args:
            path: the entry's.
            index: the chunk's number in its entry.
            plain: the chunk.
            packed: the same compressed; None when it is not to be.
        """
        encoding, content = Encoding.PLAIN, plain
        if is_zero(plain):
            encoding, content = Encoding.ZEROS, b""
        elif packed is not None and len(packed) < len(plain):
            encoding, content = Encoding.ZSTD, packed
        nonce = os.urandom(NONCE_BYTES)
        header = Header(entry_tag(path), index, len(plain), len(content) + TAG_BYTES, encoding, nonce)
        end = HEADER_BYTES + header.sealed
        self._into[:HEADER_BYTES] = header.bytes()
        self.seal.encrypt(header, path, content, self._into[HEADER_BYTES:end])
        return Record(nonce, self.seal.digest(nonce, plain)), self._into[:end]


@dataclass
class Opener:
    """Opens sealed chunks one after another; for one thread."""

    seal: Seal
    _into: memoryview = field(default_factory=lambda: memoryview(bytearray(CHUNK_BYTES_MAX)), repr=False)
    _zstd: zstandard.ZstdDecompressor = field(default_factory=zstandard.ZstdDecompressor, repr=False)

    def opened(self, header: Header, path: str, sealed: memoryview) -> tuple[Record, memoryview]:
        """Return the record of a chunk and the chunk, which is good until the next call.

        Raises:
            FormatError: it is not authentic, or not what it says; the message names entry and chunk.
        """
        content = self._into[: header.sealed - TAG_BYTES]
        self.seal.decrypt(header, path, sealed, content)
        match header.encoding:
            case Encoding.PLAIN:
                plain = content
            case Encoding.ZSTD:
                plain = memoryview(self._unpacked(header, path, content))
            case Encoding.ZEROS:
                plain = memoryview(_ZEROS)[: header.plain]
        return Record(header.nonce, self.seal.digest(header.nonce, plain)), plain

    def _unpacked(self, header: Header, path: str, content: memoryview) -> bytes:
        """Decompress; the frame's own word on its size is checked before anything is allocated."""
        try:
            if zstandard.frame_content_size(content) != header.plain:
                raise FormatError(f"entry {path}, chunk {header.index} does not unpack to {header.plain} bytes")
            return self._zstd.decompress(content, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"entry {path}, chunk {header.index} cannot be unpacked: {error}") from error


def is_zero(plain: memoryview) -> bool:
    """Say whether all bytes are zero; ends at the first that is not."""
    return _ZEROS.startswith(plain)  # memcmp; two memoryviews are compared byte by byte
