"""Export and import: checkpoints in a real volume or bucket, archives in Podman's layout, the real checkpointctl."""

from __future__ import annotations

import base64
import io
import json
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migration_agent import tool
from migration_agent.archive.exporting import Compression, chosen, export
from migration_agent.archive.importing import import_archive
from migration_agent.archive.names import NotTransferable
from migration_agent.archive.stored import StoredCheckpoint, StoreWriter
from migration_agent.checkpoint.rootfs import write_exact
from migration_agent.transport.chunks import CHUNK_BYTES, FormatError
from migration_agent.transport.manifest import MANIFEST_NAME
from migration_agent.transport.volume import Folder, Volume
from support import s3_server
from support.agent import MIGRATION, SHIPPING
from support.archives import (
    CONFIG,
    SPEC,
    checkpointctl,
    compressed,
    contents,
    file,
    listing,
    other,
    podman_archive,
    tar_of,
)
from support.criu_images import ADDRESS, PAGE_BYTES, write_process
from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from support.transfer import Nodes, make_checkpoint

pytestmark = pytest.mark.timeout(900)  # tools are built when the test bed has not built them yet

PAGES = bytes(CHUNK_BYTES) + b"memory" * 400_000
HERE = "5f0c7c1e-0000-4000-8000-0000000000ff"
"""Where the sender's checkpoint lies in the volume."""
ANOTHER = "0b0e2b8e-1111-4222-8333-444455556666"
NEW_KEY = bytes(range(32, 64))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    path = tmp_path / "volume"
    path.mkdir()
    return Volume(Folder(path, (path,)))


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    """A checkpoint as the source's agent has it: with changes, deletions, a volume and shared memory."""
    directory = make_checkpoint(tmp_path / "dumped", PAGES)
    main = directory / "main"
    layer = [other("etc", tarfile.DIRTYPE), file("etc/motd", b"changed"), file("etc/.wh.issue", b""), file("var", b"y")]
    (main / "rootfs-diff.tar").write_bytes(tar_of([*layer, file(".wh.srv", b"")]))
    (main / "config.dump").write_text(json.dumps(CONFIG))
    (main / "spec.dump").write_text(json.dumps(SPEC))
    (main / "stats-dump").write_bytes(b"statistics")
    for name, content in (("shm.tar", b"shared"), ("volume-data.tar", b"kept")):
        root = tmp_path / name
        root.mkdir()
        (root / "file").write_bytes(content)
        (directory / "_pod").mkdir(exist_ok=True)
        with (directory / "_pod" / name).open("wb") as out:
            write_exact(root, out)
    return directory


@pytest.fixture
def stored(tmp_path: Path, volume: Volume) -> Iterator[Callable[[Path], StoredCheckpoint]]:
    """Let the agent's own sender put a checkpoint into the volume, and open it."""
    made: list[Nodes] = []

    def put(directory: Path) -> StoredCheckpoint:
        made.append(Nodes(tmp_path, lambda _, __: volume.store(HERE)))
        made[-1].send(directory)
        return StoredCheckpoint(volume.store(HERE), SHIPPING.key_bytes, MIGRATION)

    yield put
    for nodes in made:
        nodes.server.close()


def exported(checkpoint: StoredCheckpoint, compression: Compression = Compression.ZSTD) -> bytes:
    out = io.BytesIO()
    export(checkpoint, chosen(checkpoint, None), out, compression)
    return out.getvalue()


def imported(volume: Volume, archive: bytes, limit: int = 1 << 30) -> dict[str, bytes]:
    writer = StoreWriter(volume.store(ANOTHER), NEW_KEY, ANOTHER)
    import_archive(io.BytesIO(archive), "main", writer, limit)
    return contents(StoredCheckpoint(volume.store(ANOTHER), NEW_KEY, ANOTHER))


@pytest.mark.parametrize("compression", list(Compression))
def test_an_archive_has_podmans_layout(
    stored: Callable[[Path], StoredCheckpoint], dumped: Path, compression: Compression
) -> None:
    members = listing(exported(stored(dumped), compression))
    assert list(members) == [
        *("config.dump", "spec.dump", "stats-dump", "network.status", "checkpoint"),
        *("checkpoint/empty.img", "checkpoint/inventory.img", "checkpoint/pages-1.img"),
        *("rootfs-diff.tar", "deleted.files", "devshm-checkpoint.tar", "volumes", "volumes/data.tar"),
    ]
    assert members["checkpoint/pages-1.img"] == PAGES
    assert members["checkpoint"] is members["volumes"] is None
    changes = listing(members["rootfs-diff.tar"] or b"")
    assert changes == {"etc": None, "etc/motd": b"changed", "var": b"y"}
    assert json.loads(members["deleted.files"] or b"") == ["/etc/issue", "/srv"]
    assert listing(members["devshm-checkpoint.tar"] or b"") == {".": None, "file": b"shared"}
    assert listing(members["volumes/data.tar"] or b"") == {".": None, "file": b"kept"}


@pytest.mark.parametrize("compression", list(Compression))
def test_the_real_checkpointctl_reads_it(
    stored: Callable[[Path], StoredCheckpoint], dumped: Path, tmp_path: Path, compression: Compression
) -> None:
    archive = tmp_path / "exported"
    archive.write_bytes(exported(stored(dumped), compression))
    shown = checkpointctl("show", archive)
    assert re.search(r"web\s+registry\.example/web:1\s+5{12}\s+crun\s+2026-11-24T20:00:00Z\s+Podman\s+3\.3 MiB", shown)
    inspected = json.loads(checkpointctl("inspect", "--format", "json", archive))[0]
    assert (inspected["container_name"], inspected["image"]) == ("web", "registry.example/web:1")
    assert inspected["checkpoint_size"]["memory_pages_size"] == len(PAGES)


def test_the_real_checkpointctl_finds_what_was_in_memory(
    stored: Callable[[Path], StoredCheckpoint], dumped: Path, tmp_path: Path
) -> None:
    marker = b"a-marker-in-the-middle-of-a-page"
    memory = bytearray(64 * PAGE_BYTES)
    memory[5 * PAGE_BYTES + 1000 : 5 * PAGE_BYTES + 1000 + len(marker)] = marker
    write_process(dumped / "main/images", "redis-server", bytes(memory))
    archive = tmp_path / "exported.tar"
    archive.write_bytes(exported(stored(dumped)))
    assert re.search(r"1\s+redis-server\s+256\.0 KiB", checkpointctl("memparse", archive))
    found = checkpointctl("memparse", "--pid", "1", "--search", marker.decode(), archive)
    assert re.search(rf"{ADDRESS + 5 * PAGE_BYTES + 1000:x}\s+{marker.decode()}\s+1", found)
    [inspected] = json.loads(checkpointctl("inspect", "--ps-tree", "--format", "json", archive))
    assert (inspected["process_tree"]["pid"], inspected["process_tree"]["command"]) == (1, "redis-server")


def test_what_was_exported_is_imported_as_it_was(
    stored: Callable[[Path], StoredCheckpoint], dumped: Path, volume: Volume
) -> None:
    checkpoint = stored(dumped)
    found = imported(volume, exported(checkpoint))
    before = contents(checkpoint)
    tars = {path for path in before if path.endswith(".tar")}
    assert found.pop("main/network.status") == b"{}", "an archive always has one"
    assert found.keys() == before.keys()
    assert {path: found[path] for path in found.keys() - tars} == {path: before[path] for path in before.keys() - tars}
    for path in tars:
        assert listing(found[path]) == listing(before[path]), path
    with pytest.raises(FormatError, match="another key"):
        StoredCheckpoint(volume.store(ANOTHER), SHIPPING.key_bytes, ANOTHER)


@pytest.mark.parametrize("how", ["zstd", "gzip", "none"])
def test_an_archive_of_podman_is_imported(volume: Volume, how: str) -> None:
    layer = tar_of([file("a", b"1"), other("l", tarfile.SYMTYPE, "/etc/passwd"), other("h", tarfile.LNKTYPE, "a")])
    archive = podman_archive(
        file("rootfs-diff.tar", layer),
        file("deleted.files", json.dumps(["/etc/issue", "/root"]).encode()),
        file("ctr.log", b"said"),
    )
    found = imported(volume, compressed(archive, how))
    assert found["main/images/pages-1.img"] == bytes(range(256)) * 8192
    assert json.loads(found["main/config.dump"]) == CONFIG
    assert found["main/network.status"] == b"{}"
    with tarfile.open(fileobj=io.BytesIO(found["main/rootfs-diff.tar"])) as tar:
        assert [(m.name, m.type, m.linkname) for m in tar] == [
            ("a", tarfile.REGTYPE, ""),
            ("l", tarfile.SYMTYPE, "/etc/passwd"),
            ("h", tarfile.LNKTYPE, "a"),
            ("etc/.wh.issue", tarfile.REGTYPE, ""),
            (".wh.root", tarfile.REGTYPE, ""),
        ]


def test_deletions_alone_become_a_layer(volume: Volume) -> None:
    found = imported(volume, podman_archive(file("deleted.files", b'["/etc/issue"]')))
    assert listing(found["main/rootfs-diff.tar"]) == {"etc/.wh.issue": b""}


def test_holes_and_attributes_come_back(volume: Volume) -> None:
    """Our own archives may have sparse files within, which Podman's tar writer never makes."""
    sparse = file("s", b"1\n1048576\n3\n".ljust(512, b"\0") + b"end")
    sparse[0].pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1048579"}
    sparse[0].pax_headers |= {"GNU.sparse.name": "s", "SCHILY.xattr.user.a": "b", "mtime": "5.25"}
    found = imported(volume, podman_archive(file("rootfs-diff.tar", tar_of([sparse]))))
    with tarfile.open(fileobj=io.BytesIO(found["main/rootfs-diff.tar"])) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == bytes(1 << 20) + b"end"
        assert member.pax_headers["SCHILY.xattr.user.a"] == "b"
        assert member.mtime == 5.25


LAYER = "rootfs-diff.tar"
WHOLE = {
    "no inventory": (podman_archive(without=("checkpoint/inventory.img",)), "no images/inventory.img"),
    "no configuration": (podman_archive(without=("config.dump",)), "no config.dump"),
    "no specification": (podman_archive(without=("spec.dump",)), "no spec.dump"),
    "a configuration that is none": (podman_archive(config=[]), "config.dump is not what Podman writes"),
    "several containers": (podman_archive(file("pod.options", b"{}")), "a pod with several containers"),
    "a volume": (podman_archive(file("volumes/Data_1.tar", tar_of([]))), "volume Data_1.tar: no volume of a pod"),
    "a pre-checkpoint": (podman_archive(other("checkpoint/parent", tarfile.SYMTYPE, "../pre")), "an earlier one"),
    "a pre-checkpoint's directory": (podman_archive(file("pre-checkpoint/x")), "an earlier one"),
    "another file": (podman_archive(file("evil")), "evil is not a part"),
    "a path out of it": (podman_archive(file("checkpoint/../../etc/passwd")), "leads out of the archive"),
    "an absolute path": (podman_archive(file("/etc/passwd")), "not a relative path"),
    "a deep path": (podman_archive(file("checkpoint/a/b.img")), "is not a part"),
    "a link for an image": (podman_archive(other("checkpoint/x.img", tarfile.SYMTYPE, "/x")), "not a plain file"),
    "a hard link": (podman_archive(other("checkpoint/x.img", tarfile.LNKTYPE, "spec.dump")), "not a plain file"),
    "an image twice": (podman_archive(file("checkpoint/inventory.img")), "is there twice"),
    "cut off": (podman_archive().rstrip(b"\0"), "cut off"),
    "cut within an image": (podman_archive()[:100_000], "cannot be read"),
    "not an archive": (b"no tar at all" * 100, "cannot be read"),
    "empty": (b"", "cannot be read"),
    "zstd that is none": (b"\x28\xb5\x2f\xfd" + b"z" * 100, "cannot be read"),
    "gzip that is none": (b"\x1f\x8b" + b"z" * 100, "cannot be read"),
    "deletions out of the root": (podman_archive(file("deleted.files", b'["/../../etc"]')), "leads out"),
    "deletion of the root": (podman_archive(file("deleted.files", b'["/"]')), "not a relative path"),
    "deletions that are none": (podman_archive(file("deleted.files", b'{"a": 1}')), "not a list of paths"),
}
IN_A_LAYER = {
    "a device": (other("dev/sda", tarfile.BLKTYPE), "device"),
    "a character device": (other("dev/null", tarfile.CHRTYPE), "device"),
    "a whiteout": (file("etc/.wh.passwd", b""), "means a deletion"),
    "a path out of it": (file("../../etc/passwd"), "leads out"),
    "an absolute path": (file("/etc/passwd"), "not a relative path"),
    "a hard link out of it": (other("x", tarfile.LNKTYPE, "../../etc/shadow"), "leads out"),
    "a hard link to itself": (other("x", tarfile.LNKTYPE, "./x"), "to itself"),
    "an unknown kind": (other("x", b"Z"), "of a kind"),
    "a root that is a file": (file("./"), "the root is not a directory"),
}
REFUSED = WHOLE | {
    f"{name} in {where}": (podman_archive(file(where, tar_of([member]))), message)
    for name, (member, message) in IN_A_LAYER.items()
    for where in (LAYER, "devshm-checkpoint.tar", "volumes/data.tar")
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_imported_is_said_and_nothing_is_written(volume: Volume, case: str) -> None:
    archive, message = REFUSED[case]
    with pytest.raises(NotTransferable, match=re.escape(message)):
        imported(volume, archive)
    assert volume.store(ANOTHER).list() == ()


def test_everything_that_stands_against_it_is_listed_at_once(volume: Volume) -> None:
    bad_layer = tar_of([other("dev/a", tarfile.CHRTYPE), other("dev/b", tarfile.BLKTYPE)])
    archive = podman_archive(file("pod.options", b"{}"), file("volumes/X.tar", b""), file(LAYER, bad_layer))
    with pytest.raises(NotTransferable) as caught:
        imported(volume, archive)
    assert len(caught.value.problems) == 4


def test_bombs_are_not_unpacked(volume: Volume) -> None:
    zeros = podman_archive(file("checkpoint/pages-2.img", bytes(64 << 20)))
    with pytest.raises(NotTransferable, match="more than the limit"):
        imported(volume, compressed(zeros, "zstd"), limit=32 << 20)
    hole = file("s", b"1\n0\n0\n".ljust(512, b"\0"))
    hole[0].pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    with pytest.raises(NotTransferable, match="more than the limit"):
        imported(volume, podman_archive(file(LAYER, tar_of([hole]))))
    long = file("x")
    long[0].pax_headers = {"comment": "y" * (5 << 20)}
    with pytest.raises(NotTransferable, match="headers of more than"):
        imported(volume, podman_archive(long))
    with pytest.raises(NotTransferable, match="headers of more than"):
        imported(volume, podman_archive(file(LAYER, tar_of([long]))))
    map_of_millions = file("s", b"3000000\n" + b"0\n" * 3_000_000)
    map_of_millions[0].pax_headers = hole[0].pax_headers
    with pytest.raises(NotTransferable, match="headers of more than"):
        imported(volume, podman_archive(file(LAYER, tar_of([map_of_millions]))))
    assert volume.store(ANOTHER).list() == ()


def test_a_damaged_checkpoint_is_not_exported(
    stored: Callable[[Path], StoredCheckpoint], dumped: Path, volume: Volume
) -> None:
    checkpoint = stored(dumped)
    store = volume.store(HERE)
    for name in store.list():
        blob = store.get(name)
        store.put(name, blob[:-1] + bytes([blob[-1] ^ 1]))
        with pytest.raises(FormatError, match=r"chunk \d+ is not authentic|the manifest is not authentic"):
            exported(StoredCheckpoint(store, SHIPPING.key_bytes, MIGRATION))
        store.put(name, blob)
    with pytest.raises(FormatError, match="another key"):
        StoredCheckpoint(store, bytes(32), MIGRATION)
    exported(checkpoint)
    store.put(MANIFEST_NAME, b"")
    with pytest.raises(FormatError, match="no manifest"):
        StoredCheckpoint(store, SHIPPING.key_bytes, MIGRATION)


def test_what_an_archive_cannot_hold_is_refused_before_the_first_byte(
    stored: Callable[[Path], StoredCheckpoint], dumped: Path
) -> None:
    layer = tar_of([other("opt", tarfile.DIRTYPE), file("opt/.wh..wh..opq", b"")])
    (dumped / "main/rootfs-diff.tar").write_bytes(layer)
    checkpoint, out = stored(dumped), io.BytesIO()
    with pytest.raises(NotTransferable, match="replaced the image's directory /opt"):
        export(checkpoint, "main", out, Compression.NONE)
    assert out.getvalue() == b""
    with pytest.raises(NotTransferable, match="no container other; it has main"):
        chosen(checkpoint, "other")


def test_the_command_imports_and_exports(volume: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, key, out = tmp_path / "podman.tar", tmp_path / "key", tmp_path / "out.tar"
    archive.write_bytes(compressed(podman_archive(file("dump.log", b"a log")), "gzip"))
    where = ("--volume", str(volume.directory))
    tool.main(["import", *where, "--container", "main", "--key-file", str(key), str(archive)])
    said = capsys.readouterr()
    assert "Left out: dump.log: CRIU's log." in said.err
    exports = ["export", *where, "--uid", said.out.strip(), "--key-file", str(key), "--container", "main"]
    tool.main([*exports, str(out)])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (key, out)] == [0o600, 0o600]
    assert listing(out.read_bytes()) == listing(podman_archive())
    with pytest.raises(SystemExit, match="is there already"):
        tool.main([*exports, str(out)])
    with pytest.raises(SystemExit, match="is there already"):
        tool.main(["import", *where, "--container", "main", "--key-file", str(key), str(archive)])
    assert len(list((tmp_path / "volume" / "container-migration").iterdir())) == 1


def test_the_command_leaves_nothing_when_it_fails(volume: Volume, tmp_path: Path) -> None:
    archive, new_key = tmp_path / "bad.tar", tmp_path / "new-key"
    archive.write_bytes(podman_archive(file("pod.options", b"{}")))
    with pytest.raises(SystemExit, match=r"cannot be imported:\n- pod.options: this is the archive of a pod"):
        tool.main(
            [
                "import",
                "--volume",
                str(volume.directory),
                "--container",
                "main",
                "--key-file",
                str(new_key),
                str(archive),
            ]
        )
    (tmp_path / "key").write_text(base64.b64encode(NEW_KEY).decode() + "\n")
    words = ["export", "--volume", str(volume.directory), "--uid", ANOTHER, "--key-file", str(tmp_path / "key")]
    with pytest.raises(SystemExit, match="no complete checkpoint"):
        tool.main([*words, str(tmp_path / "out.tar")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "key", "volume"]
    (tmp_path / "key").write_text("no key")
    with pytest.raises(SystemExit, match="does not hold 32 bytes in base64"):
        tool.main([*words, "-"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server.running(s3_server.server_in(tmp_path_factory.mktemp("s3"), s3_server.binary())) as it:
        yield it


def test_the_command_reads_and_writes_buckets(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials, archive = tmp_path / "credentials", tmp_path / "podman.tar"
    credentials.mkdir()
    archive.write_bytes(podman_archive())
    words = ["--bucket", f"s3://{BUCKET}/kept", "--endpoint", server.endpoint, "--credentials", str(credentials)]
    new_key = tmp_path / "new-key"
    imports = ["import", *words, "--container", "web", "--key-file", str(new_key), str(archive)]
    with pytest.raises(SystemExit, match="has no file AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        tool.main(imports)
    (credentials / "AWS_ACCESS_KEY_ID").write_text(ACCESS_KEY + "\n")
    (credentials / "AWS_SECRET_ACCESS_KEY").write_text("wrong")
    with pytest.raises(SystemExit, match="answers 403") as caught:
        tool.main(imports)
    assert ACCESS_KEY not in str(caught.value)
    (credentials / "AWS_SECRET_ACCESS_KEY").write_text(SECRET_KEY)
    tool.main(imports)
    uid, out = capsys.readouterr().out.strip(), tmp_path / "again.tar"
    tool.main(["export", *words, "--uid", uid, "--key-file", str(new_key), "--compress", "none", str(out)])
    before, after = listing(archive.read_bytes()), listing(out.read_bytes())
    assert after == before
