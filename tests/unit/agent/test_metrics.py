"""The agent's metrics, scraped over HTTP."""

from __future__ import annotations

import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp.test_utils import unused_port

from migration_agent import metrics
from migration_agent.certificate import VALID, ensure_certificate


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_a_scrape_has_what_this_node_does(tmp_path: Path) -> None:
    made = datetime.now(UTC)
    metrics.certificate_ends(ensure_certificate(tmp_path / "crt", tmp_path / "key", "node-a", "127.0.0.1"))
    port, frozen = unused_port(), [0]
    stop = metrics.serve("127.0.0.1", port, lambda: frozen[0])
    try:
        before = scraped(port)
        metrics.SENT.inc(7)
        metrics.RECEIVED.inc(11)
        metrics.REFUSED.labels("operator", "403").inc()
        frozen[0] = 2
        after = scraped(port)
    finally:
        stop()
    p = "container_migration_agent"
    assert after[f"{p}_sent_bytes_total"] - before[f"{p}_sent_bytes_total"] == 7
    assert after[f"{p}_received_bytes_total"] - before[f"{p}_received_bytes_total"] == 11
    refused = f'{p}_refused_requests_total{{asked_by="operator",why="403"}}'
    assert after[refused] - before.get(refused, 0) == 1
    assert (before[f"{p}_frozen_containers"], after[f"{p}_frozen_containers"]) == (0, 2)
    ends = datetime.fromtimestamp(after[f"{p}_certificate_expiry_timestamp_seconds"], UTC)
    assert abs(ends - (made + VALID)) < timedelta(minutes=5)
