"""`container-migration export|import`: a checkpoint in a volume or bucket to an archive of Podman's, and back.

It needs the store and the key, nothing of a cluster. Secrets come in files, never in arguments.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import os
import sys
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from migration_agent.archive import names
from migration_agent.archive.exporting import Compression, chosen, export
from migration_agent.archive.importing import import_archive
from migration_agent.archive.stored import StoredCheckpoint, StoreWriter
from migration_agent.paths import UnsafeName, checked_container
from migration_agent.transport.chunks import FormatError
from migration_agent.transport.objects import Bucket
from migration_agent.transport.store import Place, StoreFailure
from migration_agent.transport.volume import Folder, Volume
from migration_api.shipping import KEY_BYTES
from migration_api.transport import AUTHORITY, CREDENTIALS

_SECRET_BYTES = 64 * 1024


class Failure(Exception):
    """The command cannot be done; the message says why and what to do."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; ends the process with 1 and a message when it cannot be done."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except names.NotTransferable as error:
        listed = "".join(f"\n- {problem}" for problem in error.problems)
        sys.exit(f"This cannot be {options.verb}ed:{listed}")
    except (Failure, FormatError, StoreFailure, UnsafeName, OSError) as error:
        sys.exit(f"The {options.verb} failed: {error}")


def _export(options: argparse.Namespace) -> None:
    checkpoint = StoredCheckpoint(_place(options).store(options.uid), _key(options.key_file), options.uid)
    container = chosen(checkpoint, options.container)
    if options.archive == "-":
        done = export(checkpoint, container, sys.stdout.buffer, options.compress)
        sys.stdout.buffer.flush()
    else:
        with _new_file(Path(options.archive)) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as out:
            done = export(checkpoint, container, out, options.compress)
    _say(f"Container {container}: {done.files} files were exported.", done.left_out)


def _import(options: argparse.Namespace) -> None:
    uid, container = str(uuid.uuid4()), checked_container(options.container)
    key = os.urandom(KEY_BYTES)
    place = _place(options)
    with Path(options.archive).open("rb") as archive, _new_file(Path(options.key_file)) as descriptor:
        store = place.store(uid)
        try:
            writer = StoreWriter(store, key, uid)
            left_out = import_archive(archive, container, writer, options.limit)
        except BaseException:
            store.wipe()
            raise
        os.write(descriptor, base64.b64encode(key))
    sys.stdout.write(f"{uid}\n")
    _say(f"Imported {writer.bytes_written} bytes as {uid} into {place}.", left_out)


def _say(what: str, left_out: Sequence[str]) -> None:
    sys.stderr.writelines(f"{line}\n" for line in (what, *(f"Left out: {part}." for part in left_out)))


def _place(options: argparse.Namespace) -> Place:
    if options.volume is not None:
        path = Path(options.volume).absolute()
        return Volume(Folder(path, (path,)))
    scheme = options.bucket.partition(":")[0]
    if scheme not in CREDENTIALS:
        raise Failure(f"{options.bucket!r} is not the URL of a bucket: s3://…, gs://… or az://…")
    if options.credentials is None:
        raise Failure("--bucket needs --credentials, a directory with a file for each key of the Secret")
    known, directory = CREDENTIALS[scheme], Path(options.credentials)
    found = {c: _secret(directory / c.key) for c in known.all if (directory / c.key).exists()}
    if missing := known.missing(c.key for c in found):
        raise Failure(f"{directory} has no file {missing}")
    return Bucket(
        url=options.bucket,
        credentials={c.setting: value for c, value in found.items()},
        endpoint=options.endpoint,
        region=options.region,
        authority=_secret(directory / AUTHORITY) if (directory / AUTHORITY).exists() else None,
    )


def _key(path: str) -> bytes:
    try:
        key = base64.b64decode(_secret(Path(path)), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise Failure(
            f"{path} does not hold {KEY_BYTES} bytes in base64: it is the field `key` of the Secret, as `kubectl get "
            "secret -o jsonpath={.data.key}` prints it"
        )
    return key


def _secret(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_SECRET_BYTES).decode("utf-8", "replace").strip()


@contextmanager
def _new_file(path: Path) -> Generator[int]:
    """Make a file that nobody else can read; it is there only when the context ends well, and replaces nothing."""
    if path.exists():
        raise Failure(f"{path} is there already")
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
        os.fsync(descriptor)
        try:
            os.link(new, path)
        except FileExistsError:
            raise Failure(f"{path} is there already") from None
    finally:
        os.close(descriptor)
        new.unlink()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="container-migration", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        it = verbs.add_parser(name, help=text, description=text)
        place = it.add_mutually_exclusive_group(required=True)
        place.add_argument("--volume", help="the directory that holds checkpoints (`sharedVolume.path`)")
        place.add_argument("--bucket", help="the URL of the bucket that does (`objectStore.url`)")
        it.add_argument("--endpoint", help="of the bucket, when it is not the provider's own")
        it.add_argument("--region", help="of the bucket")
        it.add_argument("--credentials", help="a directory with a file for each key of the bucket's Secret")
        return it

    out = verb("export", "write a checkpoint as an archive of `podman container checkpoint --export`")
    out.add_argument("--uid", required=True, help="of the migration or checkpoint")
    out.add_argument("--key-file", required=True, help="a file with its key, in base64")
    out.add_argument("--container", help="which one, when there are several")
    compressions = list(Compression)
    out.add_argument("--compress", type=Compression, choices=compressions, default=Compression.ZSTD)
    out.add_argument("archive", help="a new file, or - for the standard output")
    out.set_defaults(run=_export)

    back = verb("import", "read such an archive into a volume or bucket, with a new key; prints the new UID")
    back.add_argument("--key-file", required=True, help="a new file for the key, in base64")
    back.add_argument("--container", required=True, help="the name of the container in the pod")
    back.add_argument("--limit", type=int, default=names.TOTAL_BYTES, help="the most bytes that it may unpack to")
    back.add_argument("archive", help="a file")
    back.set_defaults(run=_import)
    return parser


if __name__ == "__main__":
    main()
