"""What Prometheus is told of this node: who was refused, what is frozen, what was moved, when the certificate ends.

Module-level, as is usual with this library: what counts is far apart, and there is one process.
"""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client as prometheus
from cryptography import x509

REGISTRY = prometheus.CollectorRegistry()
_PREFIX = "container_migration_agent"

REFUSED = prometheus.Counter(
    f"{_PREFIX}_refused_requests", "Requests that were refused.", ["asked_by", "why"], registry=REGISTRY
)
"""`asked_by`: operator or peer; `why`: the HTTP status, `untrusted` or `refused`."""

SENT = prometheus.Counter(f"{_PREFIX}_sent_bytes", "Bytes of checkpoints sent to other nodes.", registry=REGISTRY)
RECEIVED = prometheus.Counter(f"{_PREFIX}_received_bytes", "Bytes of checkpoints received.", registry=REGISTRY)

_FROZEN = prometheus.Gauge(f"{_PREFIX}_frozen_containers", "Containers that stand still now.", registry=REGISTRY)
_EXPIRY = prometheus.Gauge(
    f"{_PREFIX}_certificate_expiry_timestamp_seconds", "When the agent's certificate ends.", registry=REGISTRY
)


def certificate_ends(pem: str) -> None:
    """Note the certificate that is served from now on."""
    _EXPIRY.set(x509.load_pem_x509_certificate(pem.encode("ascii")).not_valid_after_utc.timestamp())


def serve(address: str, port: int, frozen: Callable[[], int]) -> Callable[[], None]:
    """Answer scrapes in a thread; return what ends it. `frozen`: counts frozen containers, called in that thread."""
    _FROZEN.set_function(frozen)
    server, thread = prometheus.start_http_server(port, addr=address, registry=REGISTRY)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


prometheus.ProcessCollector(registry=REGISTRY)
