"""The operator's process: `container-migration-operator`.

Environment: AGENT_TOKEN_FILE (the token shown to agents), LOG_LEVEL, what `Rules.from_environment` reads, and in tests
FAILPOINTS (a directory: see `migration_api.failpoints`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import kopf

from migration_api import failpoints
from migration_operator.agents import Agents
from migration_operator.handlers import Context, registry_for
from migration_operator.kube import Kube
from migration_operator.rules import Rules

HEALTH = "http://0.0.0.0:8080/healthz"
_TOKEN_FILE = "/var/run/secrets/container-migration/token"  # noqa: S105  a path


async def run() -> None:
    """Run until a signal ends it; migrations are left as they are, and the next operator continues them."""
    if directory := os.environ.get("FAILPOINTS"):
        failpoints.look_in(Path(directory))
    kube = await Kube.connect()
    agents = Agents(Path(os.environ.get("AGENT_TOKEN_FILE", _TOKEN_FILE)))
    context = Context(kube, agents, Rules.from_environment(os.environ))
    context.metrics.serve()
    loops = [
        asyncio.create_task(context.labels.run(), name="node labels"),
        asyncio.create_task(context.expiry.run(), name="expiry"),
        asyncio.create_task(context.keeper.run(), name="retention"),
    ]
    try:
        await kopf.operator(
            registry=registry_for(context),
            standalone=True,
            clusterwide=True,
            liveness_endpoint=HEALTH,
            # The pod's name: by itself kopf asks for a user name, and there is none. Its own kind of str is private.
            identity=socket.gethostname(),  # pyright: ignore[reportArgumentType]
        )
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await context.drivers.stop()
        await context.keeper.stop()
        await agents.close()
        await kube.close()


def main() -> None:
    """Run the operator."""
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO").upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("kopf").setLevel(logging.WARNING)
    asyncio.run(run())


if __name__ == "__main__":
    main()
