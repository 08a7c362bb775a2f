"""The test bed on a machine that has Docker and a registry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kind.testbed.places import Cluster
from support.ordinary import NODE_IMAGE, Ordinary
from support.testbed import Testbed

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

UP = ("up", "--workers", "1", "--image", f"docker.io/{NODE_IMAGE}")


@pytest.fixture(scope="module")
def machine(testbed: Testbed) -> Iterator[Ordinary]:
    machine = Ordinary(Cluster(f"{testbed.name}-machine"))
    try:
        machine.start()
        machine.publish_node_image()
        yield machine
    finally:
        machine.remove()


def test_what_cannot_be_pulled_is_made_from_packages_and_up_says_why(testbed: Testbed, machine: Ordinary) -> None:
    cluster = Testbed(f"{testbed.name}-found", machine.where())
    told = cluster.kill_at("engine: ", *UP[:-1], "docker.io/kindest/node:v0.0.0")
    assert "engine: private" in told
    _, _, why = told.partition("because docker answers, but cannot pull docker.io/kindest/node:v0.0.0: ")
    assert "registry" in why  # the mirror has it not, and what it mirrors cannot be reached
