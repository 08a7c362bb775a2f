"""Every version of the test bed. The Go modules' own go.mod files pin the rest; a unit test keeps both the same."""

from typing import Final

KUBERNETES: Final = "v1.37.2"

CONTAINERD: Final = {"2.4": "v2.4.2", "2.1": "v2.1.9"}
"""What `--containerd` can choose; the first is the default. The last of its series that is served as a Go module."""

GO_MODULES: Final = {
    "kind": ("sigs.k8s.io/kind", "v0.33.0"),
    "kubernetes": ("k8s.io/kubernetes", KUBERNETES),
    **{f"containerd-{series}": ("github.com/containerd/containerd/v2", v) for series, v in CONTAINERD.items()},
    "etcd": ("go.etcd.io/etcd/server/v3", "v3.7.3"),
    "coredns": ("github.com/coredns/coredns", "v1.14.6"),
    "helm": ("helm.sh/helm/v4", "v4.3.1"),
    "versitygw": ("github.com/versity/versitygw", "v1.8.0"),
    "checkpointctl": ("github.com/checkpoint-restore/checkpointctl", "v1.6.0"),
}
"""A folder below `modules/`, the module it builds, and its version there."""

GO: Final = (1, 26)
"""The least Go that builds them."""

NODE_SUITE: Final = "trixie"
"""Debian release of the node image and of the base images; podman in the nodes comes from it as well."""

RUNTIME_SUITE: Final = "forky"
"""Debian release that the nodes' runc (1.3) and CNI plugins, and CRIU (4.2) on demand, come from."""

LEAST: Final = {"runc": "1.3", "criu": "4.2"}
"""What their Debian release must have at least.

A suite goes on and a mirror keeps only its newest packages, so no exact version can be asked for next month: what came
is recorded, shown by `status`, and used until the inputs change.
"""

PYTHON_IMAGE: Final = "docker.io/library/python:3.13-slim"
DEBIAN_IMAGE: Final = "docker.io/library/debian:trixie-slim"
GOLANG_IMAGE: Final = "docker.io/library/golang:1.26-trixie"
