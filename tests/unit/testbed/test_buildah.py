"""The image builder's environment."""

from __future__ import annotations

import pytest

from kind.testbed import buildah


def test_in_a_cluster_s_environment_its_docker_configuration_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not there, and buildah ends when it is named: so no image could be loaded from within a test."""
    monkeypatch.setenv("DOCKER_CONFIG", "/not-there")
    monkeypatch.setattr(buildah, "driver", lambda: "vfs")
    assert buildah.environment()["DOCKER_CONFIG"] == ""
