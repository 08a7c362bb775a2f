"""What `down` asks an engine that was found to remove."""

from __future__ import annotations

from pathlib import Path

import pytest

from kind.testbed import removal
from kind.testbed.places import Cluster
from kind.testbed.plan import Plan

ENGINE = """\
#!/bin/sh
echo "$*" >> {log}
case "$1" in
    ps) echo one two ;;
    volume) [ "$2" = rm ] || echo "var-of-${{5#label=}}" ;;
    network) echo "kind-ours"; echo "kind-theirs" ;;
esac
"""


@pytest.mark.parametrize(
    ("engine", "volumes"),
    [("docker", []), ("podman", ["volume rm --force var-of-ours-control-plane var-of-ours-worker"])],
)
def test_nodes_and_network_go_and_podmans_volumes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, volumes: list[str]
) -> None:
    log = tmp_path / "log"
    (tmp_path / engine).write_text(ENGINE.format(log=log))
    (tmp_path / engine).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    removal.remove_from_found_engine(Cluster("ours", Plan(engine=engine, workers=1)))
    removed = [line for line in log.read_text().splitlines() if " rm" in line or line.startswith("rm")]
    assert removed == ["rm --force --volumes one two", *volumes, "network rm kind-ours"]
    assert "ps --all --quiet --filter label=io.x-k8s.kind.cluster=ours" in log.read_text()
