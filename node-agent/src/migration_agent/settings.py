"""What the agent is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path


class SettingsError(Exception):
    """The environment is not complete; the message says which variable is missing or wrong."""


@dataclass(frozen=True)
class Settings:
    """Fixed for the life of the process."""

    node: str
    address: str
    """The pod's IP address; with hostNetwork the node's."""
    operator_account: str
    """The only user that may ask this agent for anything."""
    register_handler: bool = False
    """Whether the agent may register the runtime handler with containerd, and restart it for that."""
    api_port: int = 9443
    peer_port: int = 9444
    metrics_port: int = 9445
    publish_seconds: float = 20.0
    housekeeping_seconds: float = 30.0
    shared_paths: tuple[Path, ...] = ()
    """The host's directories that are mounted here, at the same path, for shared volumes."""
    leftover_seconds: float = 48 * 3600.0
    """How old what a crashed migration left in a store must be to be removed."""
    checkpoints_on_disk: bool = False
    """Whether a checkpoint that does not fit into memory may lie on the node's disk meanwhile."""
    bytes_per_second: int | None = None
    """The most that this node sends for all migrations together."""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read NODE_NAME, POD_IP, NAMESPACE and what else is set.

        That is OPERATOR_ACCOUNT, REGISTER_HANDLER, the ports (API_, PEER_, METRICS_PORT), SHARED_PATHS (by
        commas), LEFTOVER_SECONDS, BYTES_PER_SECOND, CHECKPOINTS_ON_DISK, LOG_LEVEL.

        Raises:
            SettingsError: one is missing or wrong.
        """

        def required(name: str) -> str:
            value = environ.get(name, "")
            if not value:
                raise SettingsError(f"the environment variable {name} is not set; see the agent's DaemonSet")
            return value

        def port(name: str, default: int) -> int:
            text = environ.get(name, str(default))
            if not text.isdecimal() or not 0 < int(text) < 1 << 16:
                raise SettingsError(f"the environment variable {name} is not a port: {text!r}")
            return int(text)

        def number(name: str) -> int | None:
            text = environ.get(name, "")
            if text and (not text.isdecimal() or not int(text)):
                raise SettingsError(f"the environment variable {name} is not a positive number: {text!r}")
            return int(text) if text else None

        address = required("POD_IP")
        try:
            ip_address(address)
        except ValueError as error:
            raise SettingsError(f"the environment variable POD_IP is not an IP address: {address!r}") from error
        account = f"system:serviceaccount:{required('NAMESPACE')}:container-migration-operator"
        return cls(
            node=required("NODE_NAME"),
            address=address,
            operator_account=environ.get("OPERATOR_ACCOUNT") or account,
            register_handler=environ.get("REGISTER_HANDLER") == "true",
            api_port=port("API_PORT", cls.api_port),
            peer_port=port("PEER_PORT", cls.peer_port),
            metrics_port=port("METRICS_PORT", cls.metrics_port),
            shared_paths=tuple(Path(path) for path in environ.get("SHARED_PATHS", "").split(",") if path),
            leftover_seconds=number("LEFTOVER_SECONDS") or cls.leftover_seconds,
            bytes_per_second=number("BYTES_PER_SECOND"),
            checkpoints_on_disk=environ.get("CHECKPOINTS_ON_DISK") == "true",
            log_level=environ.get("LOG_LEVEL", cls.log_level).upper(),
        )

    def endpoint(self, port: int) -> str:
        """Return `ADDRESS:PORT`, with brackets around an IPv6 address."""
        return f"[{self.address}]:{port}" if ":" in self.address else f"{self.address}:{port}"
