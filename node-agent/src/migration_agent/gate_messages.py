"""What interposers and hooks say to the agent, one JSON object a line (docs/protocol.md, section 4)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from migration_api.base import Model
from migration_api.migration import ContainerName, DnsName, Uid

LINE_BYTES = 64 * 1024
CREATE_NS = 110 * 10**9
"""How long after the beginning of `create` gate and hook give up by themselves, in nanoseconds."""

Text = Annotated[str, Field(max_length=LINE_BYTES)]
ContainerId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class GateHello(Model):
    """An interposer at the gate."""

    role: Literal["gate"]
    pod_uid: Uid = Field(alias="podUID")
    namespace: DnsName | None = None
    pod: DnsName | None = None
    """Its name, as the runtime wrote it into the bundle."""
    migration: Annotated[str, Field(max_length=64)] = ""
    container: ContainerName
    container_id: ContainerId = Field(alias="containerID")
    sandbox_id: Annotated[str, Field(max_length=128)] = Field(default="", alias="sandboxID")
    """The container of the pod's sandbox, as the runtime wrote it into the bundle."""
    deadline_boottime_ns: int
    keeper: bool = False
    """It stands in for a `create` that returns as soon as its tree is held."""


class HookAction(StrEnum):
    """When CRIU calls its action script."""

    POST_RESTORE = "post-restore"
    PRE_RESUME = "pre-resume"
    POST_DUMP = "post-dump"


class HookHello(Model):
    """A hook; of a dump only `migration` and `container` are there."""

    role: Literal["hook"]
    action: HookAction
    pod_uid: Uid | None = Field(default=None, alias="podUID")
    migration: Annotated[str, Field(max_length=64)] = ""
    container: ContainerName
    container_id: ContainerId | None = Field(default=None, alias="containerID")
    init_pid: Annotated[int, Field(gt=0)] | None = Field(default=None, alias="initPID")


class StartHello(Model):
    """The `start` of a container that is left out of the migration waits for the commit."""

    role: Literal["start"]
    pod_uid: Uid = Field(alias="podUID")
    container: ContainerName


class GateEvent(Model):
    """What an interposer says after it was allowed to restore."""

    event: Literal["failed", "restored"]
    message: Text = ""


Hello = GateHello | HookHello | StartHello
HELLO: TypeAdapter[Hello] = TypeAdapter(Annotated[Hello, Field(discriminator="role")])
