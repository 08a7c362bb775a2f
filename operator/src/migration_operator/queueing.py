"""Whose turn it is: how many migrations run at once, in the cluster and on each node, and who is next.

Each migration claims its nodes when nothing stands against it, before anything of it is touched. Claims are granted in
the order in which the objects were created. One that must wait keeps later ones from the nodes that it waits for, and
from no others: a busy node holds up nobody else, and nobody is overtaken for ever.

Limits are about load, not about safety: two operators by mistake may together run twice as many. Nothing here need
survive an operator: those that run are found in the API, and those that wait claim again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from migration_api.migration import ContainerMigration
from migration_operator.node_checks import unfit
from migration_operator.observation import Observation, Place, PreflightFacts, is_finished


@dataclass(frozen=True)
class Limits:
    """How many migrations may run at once.

    Attributes:
        cluster: in the whole cluster.
        node: with the same node as source or target.
    """

    cluster: int = 5
    node: int = 2

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Limits:
        """Read PARALLEL_MIGRATIONS_PER_CLUSTER and PARALLEL_MIGRATIONS_PER_NODE.

        Raises:
            ValueError: one of them is no number above 0.
        """
        default = cls()
        found = cls(
            int(environ.get("PARALLEL_MIGRATIONS_PER_CLUSTER", default.cluster)),
            int(environ.get("PARALLEL_MIGRATIONS_PER_NODE", default.node)),
        )
        if min(found.cluster, found.node) < 1:
            raise ValueError(f"with limits of {found.cluster} and {found.node} no migration would ever run")
        return found


@dataclass(frozen=True)
class Claim:
    """What a migration that wants to run asks for.

    Attributes:
        uid: the migration's.
        created: the object's creation, which is its place in the queue.
        source: the node it leaves; empty when it leaves none, being restored from a checkpoint.
        targets: the nodes that it may go to: the one asked for, or those that the scheduler may pick.
    """

    uid: str
    created: datetime
    source: str
    targets: frozenset[str]


@dataclass(frozen=True)
class Seat:
    """What a migration that runs occupies.

    Attributes:
        nodes: its source, and its target when that is known.
        anywhere: its target is being scheduled: it counts on every node.
    """

    nodes: frozenset[str]
    anywhere: bool = False


def claim_of(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> Claim:
    """Return what this migration asks for, once nothing stands against it."""
    source, target = facts.source, facts.target
    restores = migration.restores
    fit = [target] if target else [n for n in facts.candidates if source and (restores or n.name != source.name)]
    return Claim(
        uid=migration.metadata.uid,
        created=migration.metadata.creation_timestamp or now,
        source=source.name if source and not restores else "",
        targets=frozenset(n.name for n in fit if target or (source and not unfit(source, n, now))),
    )


def seat_of(o: Observation) -> Seat:
    """Return what a migration that has begun occupies.

    One whose target pod the scheduler finds no node for counts on its source alone: it may wait for long.
    """
    seat = _seat(o.migration)
    unplaced = o.target_pod is not None and bool(o.target_pod.trouble())
    return Seat(seat.nodes, seat.anywhere and o.decision is None and not unplaced)


def _seat(migration: ContainerMigration) -> Seat:
    names = {migration.status.source.node_name, migration.status.target.node_name}
    return Seat(frozenset(filter(None, names)), anywhere=migration.status.target.node_name is None)


def places(seats: Collection[Seat], claims: Iterable[Claim], limits: Limits) -> dict[str, Place]:
    """Return for each claim whether it is its turn, and what it waits for otherwise; pure.

    Args:
        seats: of those that run.
        claims: of those that wait.
        limits: how many may run.

    Returns:
        the place of each claim, by UID.
    """
    taken, reserved, found = list(seats), set[str](), dict[str, Place]()
    waiting = 0
    for claim in sorted(claims, key=lambda c: (c.created, c.uid)):
        why = _in_the_way(taken, reserved, claim, limits)
        if not why:
            taken.append(seat_for(claim))
            found[claim.uid] = Place()
            continue
        waiting += 1
        found[claim.uid] = Place(waiting, why)
        reserved |= {claim.source} - {""}
        if not _with_room(taken, reserved, claim.targets, limits):
            reserved |= claim.targets
    return found


def seat_for(claim: Claim) -> Seat:
    """Return what a claim occupies once it is granted."""
    one = claim.targets if len(claim.targets) == 1 else frozenset[str]()
    return Seat(frozenset({claim.source} - {""}) | one, anywhere=not one)


def _in_the_way(taken: Collection[Seat], reserved: set[str], claim: Claim, limits: Limits) -> str:
    if len(taken) >= limits.cluster:
        return f"{len(taken)} migrations run in the cluster, which may have {limits.cluster}"
    if claim.source and not _with_room(taken, reserved, {claim.source}, limits):
        return _full(taken, claim.source, limits)
    if not _with_room(taken, reserved, claim.targets, limits):
        return "; ".join(_full(taken, node, limits) for node in sorted(claim.targets)[:3]) or "no node fits"
    return ""


def _full(taken: Collection[Seat], node: str, limits: Limits) -> str:
    count = _count(taken, node)
    if count < limits.node:
        return f"an earlier migration waits for node {node}"
    return f"node {node} takes part in {count} migrations and may in {limits.node}"


def _with_room(taken: Collection[Seat], reserved: set[str], nodes: Iterable[str], limits: Limits) -> bool:
    return any(node not in reserved and _count(taken, node) < limits.node for node in nodes)


def _count(taken: Collection[Seat], node: str) -> int:
    return sum(seat.anywhere or node in seat.nodes for seat in taken)


@dataclass
class Queue:
    """The claims and seats of one operator.

    Attributes:
        limits: how many may run.
        wake: called with the UID of a migration whose turn it is.
        known: those that ran before this operator did are counted.
    """

    limits: Limits
    wake: Callable[[str], None]
    known: bool = False
    _seats: dict[str, Seat] = field(default_factory=dict[str, Seat])
    _claims: dict[str, Claim] = field(default_factory=dict[str, Claim])
    _left: set[str] = field(default_factory=set[str])

    def resume(self, migrations: Iterable[ContainerMigration]) -> None:
        """Count what runs already; `migrations`: all of the cluster, as they were when this operator had started."""
        for migration in migrations:
            uid = migration.metadata.uid
            if migration.begun and not is_finished(migration) and uid not in self._left:
                self._seats.setdefault(uid, _seat(migration))
        self._left.clear()
        self.known = True

    def place(self, uid: str) -> Place | None:
        """Return where a migration stands; None when it has not claimed anything."""
        if uid in self._seats:
            return Place()
        if uid not in self._claims:
            return None
        return places(self._seats.values(), self._claims.values(), self.limits)[uid]

    def ask(self, claim: Claim) -> None:
        """Take a place in the queue; its turn may be at once."""
        self._claims[claim.uid] = claim
        self._grant()

    def sit(self, uid: str, seat: Seat) -> None:
        """Note what a migration that has begun occupies now."""
        self._claims.pop(uid, None)
        before, self._seats[uid] = self._seats.get(uid), seat
        if seat != before:
            self._grant()

    def leave(self, uid: str) -> None:
        """Free what a migration occupied, or its place: it has ended."""
        if not self.known:
            self._left.add(uid)
        self._claims.pop(uid, None)
        if self._seats.pop(uid, None) is not None:
            self._grant()

    def full(self) -> frozenset[str]:
        """Return the nodes that take part in as many migrations as they may."""
        nodes = frozenset[str]().union(*(seat.nodes for seat in self._seats.values()))
        return frozenset(n for n in nodes if sum(n in seat.nodes for seat in self._seats.values()) >= self.limits.node)

    def _grant(self) -> None:
        if not self.known:
            return
        for uid, place in places(self._seats.values(), self._claims.values(), self.limits).items():
            if place.granted:
                self._seats[uid] = seat_for(self._claims.pop(uid))
                self.wake(uid)
