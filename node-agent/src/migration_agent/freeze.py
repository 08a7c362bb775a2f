"""What keeps a frozen pod frozen: the kubelet cannot start its containers again, and no packet reaches or leaves it.

Both work through files and the kernel alone, survive the agent and the kubelet, and can be repeated from any state.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from migration_agent.host import CommandFailed, Host

log = logging.getLogger(__name__)

_PODS = "/var/lib/kubelet/pods"
_POD_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_FENCE_ROUNDS = 5
_NFT_SECONDS = 10
_SS_SECONDS = 10


class FreezeFailure(Exception):
    """The fence or the packet drop could not be changed; the message is for an admin."""


@dataclass(frozen=True)
class Fence:
    """Keeps the kubelet from starting any container of a pod, under any runtime.

    A directory takes the place of the pod's `etc-hosts` file, so that mounting it as /etc/hosts fails. Containers that
    exist keep the file itself.
    """

    host: Host
    pod_uid: str

    def __post_init__(self) -> None:
        if not _POD_UID.fullmatch(self.pod_uid):
            raise FreezeFailure(f"{self.pod_uid!r} is not a pod's UID")

    def raise_(self) -> None:
        """Put the fence up; nothing when it is up.

        Raises:
            FreezeFailure: the pod has no `etc-hosts` of the kubelet's on this node, or the files cannot be changed.
        """
        try:
            self._raise()
        except OSError as error:
            raise FreezeFailure(f"the fence of pod {self.pod_uid} could not be raised: {error}") from error

    def lift(self) -> None:
        """Take the fence away; nothing when there is none or the pod's directory is gone.

        Raises:
            FreezeFailure: the files cannot be changed.
        """
        if not self.has_pod():
            return
        try:
            if self.is_up():
                self._hosts.rmdir()
            # A file in place of the fence is the kubelet's new one, and as good.
            with suppress(FileNotFoundError):
                if self._hosts.exists():
                    self._aside.unlink()
                else:
                    self._aside.rename(self._hosts)
            self._sync()
        except OSError as error:
            raise FreezeFailure(f"the fence of pod {self.pod_uid} could not be lifted: {error}") from error

    def has_pod(self) -> bool:
        """Say whether the kubelet has the pod; one that it has removed is never started again."""
        return self._hosts.parent.is_dir()

    def is_up(self) -> bool:
        """Say whether the kubelet cannot start containers of the pod."""
        return self._hosts.is_dir()

    def _raise(self) -> None:
        for _ in range(_FENCE_ROUNDS):
            if self.is_up():
                break
            # Between the two steps the kubelet may write a new file, when it happens to start a container.
            with suppress(FileNotFoundError):
                self._hosts.replace(self._aside)
            if not self._aside.exists():
                raise FreezeFailure(
                    f"pod {self.pod_uid} has no {self._hosts} of the kubelet's: it mounts its own /etc/hosts, or it is "
                    "not on this node; such a pod cannot be kept from restarting and is not migrated"
                )
            with suppress(FileExistsError):
                self._hosts.mkdir(mode=0o755)
        else:
            raise FreezeFailure(f"the kubelet keeps writing {self._hosts}: the fence could not be raised")
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._hosts.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def _hosts(self) -> Path:
        return self.host.path(f"{_PODS}/{self.pod_uid}/etc-hosts")

    @property
    def _aside(self) -> Path:
        return self._hosts.with_name("etc-hosts.container-migration")


_TABLE = "inet container-migration"
_REMOVE = f"""
add table {_TABLE}
delete table {_TABLE}
"""
"""Also right when there is no such table: one transaction, so the pod is never without the old or the new rules."""

_DROP = f"""{_REMOVE}
table {_TABLE} {{
  chain input {{ type filter hook input priority -300; policy drop; iifname "lo" accept; }}
  chain forward {{ type filter hook forward priority -300; policy drop; }}
  chain output {{ type filter hook output priority -300; policy drop; oifname "lo" accept; }}
}}
"""
_NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
"""IPv6 sends nothing, not even a reset, to a neighbour it may not ask for."""

_BARE_FIN = "\n    ".join(
    f"tcp flags & fin != 0 tcp doff {words} {length} accept"
    for words in range(5, 16)
    for length in (f"ip length {20 + 4 * words}", f"ip6 length {4 * words}")
)
"""The end of a connection in a packet without data, whatever the length of its TCP header.

The kernel sends what a process wrote before it was killed along with the FIN: that would come after the commit, from
the copy that is gone.
"""
_RESET = f"""{_REMOVE}
table {_TABLE} {{
  chain input {{
    type filter hook input priority -300; policy drop;
    iifname "lo" accept
    {_NEIGHBOURS}
    meta l4proto tcp reject with tcp reset
  }}
  chain forward {{ type filter hook forward priority -300; policy drop; }}
  chain output {{
    type filter hook output priority -300; policy drop;
    oifname "lo" accept
    {_NEIGHBOURS}
    tcp flags & rst != 0 accept
    {_BARE_FIN}
  }}
}}
"""


@dataclass(frozen=True)
class PacketDrop:
    """Rules in a pod's network namespace, entered through one of its processes.

    Without the drop the kernel of a frozen pod acknowledges bytes that are in no dump.
    """

    host: Host
    pid: int
    """A process in the pod's network namespace; the sandbox's outlives the containers (`Runtime.network_pid`)."""

    def drop(self) -> None:
        """Drop every packet but those on loopback, both ways.

        Raises:
            FreezeFailure: the pod uses the node's network, or the rules could not be set.
        """
        self._apply(_DROP, "dropped")

    def reset(self) -> None:
        """Tell peers that their connections are gone, and nothing else: what was not acknowledged yet stays here.

        The kernel destroys the connections (CONFIG_INET_DIAG_DESTROY) while their processes are frozen: each peer gets
        a reset. Where it cannot, peers that have acknowledged all get an end, and the others a reset when they send
        something. A kernel without `reject` keeps dropping: the peers then find out by their own timeouts.

        Raises:
            FreezeFailure: the pod uses the node's network, or neither rules could be set.
        """
        try:
            self._apply(_RESET, "reset")
        except FreezeFailure:
            self.drop()
            return
        try:
            self.host.run_in_netns(self.pid, ["ss", "--kill", "--tcp", "--no-header"], timeout=_SS_SECONDS)
        except CommandFailed as error:
            log.warning("the connections of process %d's pod could not be destroyed: %s", self.pid, error)

    def lift(self) -> None:
        """Remove the rules; nothing when there are none.

        Raises:
            FreezeFailure: the pod uses the node's network, or the rules could not be removed.
        """
        self._apply(_REMOVE, "let through again")

    def is_up(self) -> bool:
        """Say whether rules of ours, of `drop` or `reset`, are in the namespace.

        Raises:
            FreezeFailure: the namespace could not be looked into.
        """
        try:
            tables = self.host.run_in_netns(self.pid, ["nft", "list", "tables"], timeout=_NFT_SECONDS).stdout
        except CommandFailed as error:
            raise FreezeFailure(f"the packet filter of process {self.pid} could not be read: {error}") from error
        return f"table {_TABLE}" in tables.splitlines()

    def _apply(self, rules: str, done: str) -> None:
        try:
            if self.host.same_network_as_host(self.pid):
                raise FreezeFailure("the pod uses the node's network (hostNetwork): its packets cannot be held back")
            self.host.run_in_netns(self.pid, ["nft", "-f", "-"], timeout=_NFT_SECONDS, input=rules)
        except (OSError, CommandFailed) as error:
            raise FreezeFailure(f"the packets of process {self.pid}'s pod could not be {done}: {error}") from error
