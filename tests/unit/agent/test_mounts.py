"""A claim as an agent finds it: in the root of the process of the pod that mounts it, and nowhere else."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from migration_agent.mounts import MountedClaim, Mounts
from migration_agent.places import Places
from migration_agent.runtime.interface import Container, RuntimeFailure
from migration_agent.transport.store import HOME, StoreFailure
from migration_agent.transport.volume import Volume
from migration_agent.vault import Vault
from migration_api.names import MOUNT_CONTAINER
from migration_api.shipping import ProbeProblem, ProbeStep, StoreAccess, StoreProbe
from migration_api.transport import SharedVolume
from support.agent import SHIPPING, journal_at

POD = "5f0c7c1e-0000-4000-8000-0000000000aa"
UID = "5f0c7c1e-0000-4000-8000-0000000000ff"
CLAIM = SharedVolume(claim="checkpoints")


@dataclass
class Node:
    """A node with processes, each with a root of its own: a container runtime that knows one pod."""

    root: Path
    starts: dict[int, int] = field(default_factory=dict[int, int])
    found: tuple[Container, ...] = ()
    asked: int = 0
    failure: RuntimeFailure | None = None

    def run(self, pid: int, start: int = 7) -> Path:
        """Let the pod's container run as that process; return what it mounts."""
        claim = self.root / "proc" / str(pid) / "root" / "claim"
        claim.mkdir(parents=True)
        self.starts[pid] = start
        self.found = (
            Container(
                name=MOUNT_CONTAINER,
                container_id="c1",
                pod_uid=POD,
                init_pid=pid,
                init_start=start,
                bundle=self.root,
                memory_bytes=0,
                runtime="runc",
            ),
        )
        return claim

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / "proc" / str(pid))
        del self.starts[pid]
        self.found = ()

    def containers(self, pod_uid: str) -> tuple[Container, ...]:
        self.asked += 1
        if self.failure:
            raise self.failure
        return self.found if pod_uid == POD else ()

    @property
    def mounts(self) -> Mounts:
        return Mounts(self, self.starts.get, self.root / "proc")  # pyright: ignore[reportArgumentType]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def volume(mounts: Mounts, pod: str = POD) -> Volume:
    return Volume(MountedClaim("checkpoints", pod, mounts))


def test_what_is_put_lies_in_what_the_pod_mounts_and_the_runtime_is_asked_once(node: Node) -> None:
    claim = node.run(41)
    store = volume(node.mounts).store(UID)
    store.put("chunk-1", b"one")
    assert store.get("chunk-1") == (claim / HOME / UID / "chunk-1").read_bytes() == b"one"
    store.wipe()
    assert list((claim / HOME).iterdir()) == []
    assert node.asked == 1


def test_a_container_that_was_started_again_is_found_again(node: Node) -> None:
    node.run(41)
    store = volume(node.mounts).store(UID)
    store.put("chunk-1", b"one")
    node.end(41)
    claim = node.run(42)
    store.put("chunk-1", b"two")
    assert (claim / HOME / UID / "chunk-1").read_bytes() == b"two"


def test_another_process_with_the_same_number_is_not_the_pod_s(node: Node) -> None:
    node.run(41)
    store = volume(node.mounts).store(UID)
    store.put("chunk-1", b"one")
    node.end(41)
    foreign = node.run(41, start=8)
    node.found = ()
    with pytest.raises(StoreFailure, match="does not run here") as failure:
        store.put("chunk-1", b"two")
    assert failure.value.passing
    assert list(foreign.iterdir()) == []


def test_only_the_container_that_mounts_it_counts(node: Node) -> None:
    node.run(41)
    node.found = tuple(replace(it, name="sidecar") for it in node.found)
    with pytest.raises(StoreFailure, match="does not run here"):
        volume(node.mounts).demand()
    with pytest.raises(StoreFailure, match="does not run here"):
        volume(node.mounts, "another-pod").demand()
    node.failure = RuntimeFailure("runc is away")
    with pytest.raises(StoreFailure, match="runc is away"):
        volume(node.mounts).demand()


@pytest.mark.parametrize("link", ["claim", f"claim/{HOME}", f"claim/{HOME}/{UID}"])
def test_a_symbolic_link_leads_nowhere(node: Node, tmp_path: Path, link: str) -> None:
    """Whoever can write into the claim, or make such a pod, must not make the agent write anywhere else."""
    claim = node.run(41)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = claim.parent / link
    if link == "claim":
        claim.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere)
    with pytest.raises(StoreFailure, match="symbolic link"):
        volume(node.mounts).store(UID).put("chunk-1", b"")
    assert list(elsewhere.iterdir()) == []


def test_no_descriptor_stays_open(node: Node) -> None:
    node.run(41)
    mounts = node.mounts
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    volume(mounts).store(UID).put("chunk-1", b"one")
    volume(mounts).store(UID).list()
    node.end(41)
    with pytest.raises(StoreFailure):
        volume(mounts).demand()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_two_nodes_try_it_by_their_own_pods(tmp_path: Path) -> None:
    a, b = Node(tmp_path / "a"), Node(tmp_path / "b")
    there = a.run(41)
    b.run(42).rmdir()
    (tmp_path / "b" / "proc" / "42" / "root").rmdir()
    (tmp_path / "b" / "proc" / "42" / "root").symlink_to(there.parent)
    access = StoreAccess(shared_volume=CLAIM, mount_pod=POD)

    def probed(node: Node, step: ProbeStep) -> ProbeProblem | None:
        places = Places(str(node.root), mounts=node.mounts)
        return places.probe(StoreProbe(uid=UID, step=step, content="0123456789abcdef", store=access)).problem

    assert probed(a, ProbeStep.WRITE) is None
    assert probed(b, ProbeStep.READ) is None
    assert probed(a, ProbeStep.REMOVE) is None
    assert list((there / HOME).iterdir()) == []


def test_what_lies_in_a_claim_is_not_cleared_by_agents_themselves(tmp_path: Path) -> None:
    """The pod without which they could not is there for as long as the operator needs to have it cleared."""
    vault = Vault(journal_at(tmp_path).layout)
    vault.keep(UID, SHIPPING.model_copy(update={"store": StoreAccess(shared_volume=CLAIM, mount_pod=POD)}))
    vault.wipe(UID)
    assert vault.owed() == {}
    assert vault.shipping(UID) is None


def test_a_claim_needs_the_pod_that_mounts_it() -> None:
    for given in ({"shared_volume": CLAIM}, {"shared_volume": SharedVolume(path="/mnt"), "mount_pod": POD}):
        with pytest.raises(ValueError, match="mountPod"):
            StoreAccess.model_validate(given)
