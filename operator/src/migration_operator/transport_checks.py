"""What stands against a checkpoint's way: paths, servers and credentials first, then what the nodes found."""

from __future__ import annotations

from collections.abc import Iterator

from migration_api.preflight_reasons import PreflightReason as Why
from migration_api.shipping import ProbeProblem
from migration_api.transport import CREDENTIALS, SECRET_TYPE, ObjectStore
from migration_operator.node_checks import Problem
from migration_operator.transport_facts import ClaimFacts, MountPoint, SecretFacts, StoreAnswer, TransportFacts

SHARED_MODE = "ReadWriteMany"


def transport_problems(facts: TransportFacts) -> Iterator[Problem]:
    """Find everything that stands against the transport."""
    yield from setting_problems(facts)
    if facts.source and facts.source.report.problem:
        yield _unusable(facts.source)
    if facts.mounts and facts.mounts[0].failure:
        yield _not_mounted(facts.mounts[0])
    # When the scheduler picks, one node that can use the store is enough: the others are excluded.
    found = [_unusable(answer) for answer in facts.targets if answer.report.problem]
    found += [_not_mounted(mount) for mount in facts.mounts[1:] if mount.failure]
    if found and len(found) == max(len(facts.targets), len(facts.mounts) - 1):
        yield from found


def setting_problems(facts: TransportFacts) -> Iterator[Problem]:
    """Find what stands against it before any node is asked."""
    transport, rules = facts.transport, facts.rules
    path = transport.shared_volume.path if transport.shared_volume else None
    if path and not rules.allows_path(path):
        allowed = ", ".join(rules.allowed_paths) or "none"
        yield Problem(Why.PATH_NOT_ALLOWED, f"{path} is not in or below an allowed path ({allowed})")
    if transport.claim:
        yield from _claim_problems(transport.claim, facts.claim)
    if transport.object_store:
        yield from _bucket_problems(transport.object_store, facts)


def _claim_problems(name: str, claim: ClaimFacts | None) -> Iterator[Problem]:
    """Its namespace's owner may use it: there is no list of those that are allowed."""
    if claim is None or claim.deleting:
        what = f"there is no claim {name}" if claim is None else f"the claim {name} is being deleted"
        yield Problem(Why.CLAIM_NOT_FOUND, f"{what} in the namespace of this object")
    elif SHARED_MODE not in claim.modes:
        found = ", ".join(sorted(claim.modes)) or "no access mode"
        yield Problem(Why.CLAIM_NOT_SHARED, f"the claim {name} has {found}, not {SHARED_MODE}")
    elif claim.block:
        yield Problem(Why.CLAIM_NOT_SHARED, f"the claim {name} is a block device (volumeMode Block), not a file system")


def _not_mounted(mount: MountPoint) -> Problem:
    return Problem(Why.CLAIM_NOT_MOUNTED, f"node {mount.node}: {mount.failure}")


def _bucket_problems(bucket: ObjectStore, facts: TransportFacts) -> Iterator[Problem]:
    if bucket.endpoint and not facts.rules.allows_endpoint(bucket.endpoint):
        allowed = ", ".join(facts.rules.allowed_endpoints) or "none"
        yield Problem(Why.ENDPOINT_NOT_ALLOWED, f"{bucket.endpoint} is not an allowed endpoint ({allowed})")
    name = bucket.secret_ref.name
    if facts.secret is None:
        yield Problem(Why.STORE_SECRET_NOT_FOUND, f"there is no Secret {name} in the namespace of this object")
    elif trouble := _secret_trouble(bucket, facts.secret):
        yield Problem(Why.STORE_SECRET_INVALID, f"the Secret {name} {trouble}")


def _secret_trouble(bucket: ObjectStore, secret: SecretFacts) -> str:
    if secret.type != SECRET_TYPE:
        return f"has the type {secret.type or 'Opaque'}, not {SECRET_TYPE}"
    if missing := CREDENTIALS[bucket.scheme].missing(secret.keys):
        return f"has no key {missing}, which a bucket of {bucket.scheme}:// needs"
    return ""


def _unusable(answer: StoreAnswer) -> Problem:
    shared = answer.report.problem is not ProbeProblem.NOT_SHARED
    reason = Why.STORE_UNUSABLE if shared else Why.STORE_NOT_SHARED
    return Problem(reason, f"node {answer.node}: {answer.report.message}")
