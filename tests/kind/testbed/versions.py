"""Every version the test bed pins outside `modules/*/go.mod`, in one place."""

from typing import Final

KUBERNETES: Final = "v1.37.2"
"""Must be the version that `modules/kubernetes/go.mod` requires."""

NODE_SUITE: Final = "trixie"
"""Debian release of the node image and of the base images."""

RUNTIME_SUITE: Final = "forky"
"""Debian release that runc and the CNI plugins of the nodes come from: runc >= 1.3."""

PYTHON_IMAGE: Final = "docker.io/library/python:3.13-slim"
DEBIAN_IMAGE: Final = "docker.io/library/debian:trixie-slim"
GOLANG_IMAGE: Final = "docker.io/library/golang:1.26-trixie"
