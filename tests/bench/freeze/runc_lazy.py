"""Bare runc with CRIU's lazy pages over the network: the container goes on at once, its memory follows. The floor."""

from __future__ import annotations

from bench.freeze.containers import IMAGES, WORK, Commands
from bench.freeze.method import NAME
from bench.freeze.node import STATUS
from bench.freeze.runc import Runc

PORT = 27077
PIPE_SIZE, PIPE_BEFORE = "/proc/sys/fs/pipe-max-size", f"/run/{NAME}-pipe-max-size"

LARGE_PIPES = f"""
[ -e {PIPE_BEFORE} ] || cat {PIPE_SIZE} > {PIPE_BEFORE}
echo {128 << 20} > {PIPE_SIZE}
"""
"""CRIU serves pages from pipes that may be larger than 1 MiB only with CAP_SYS_RESOURCE, which not every machine gives
to its containers. Without them: `page-pipe: tee: 65536: Operation not permitted`."""

USUAL_PIPES = f"""
[ ! -e {PIPE_BEFORE} ] || {{ cat {PIPE_BEFORE} > {PIPE_SIZE}; rm {PIPE_BEFORE}; }}
"""


class RuncLazy(Runc):
    """Only what is not memory is copied while the container stands still."""

    name = "runc-lazy"

    @property
    def removal(self) -> str:
        """See `InNodes`."""
        return USUAL_PIPES + super().removal

    def start(self, mebibytes: int) -> None:
        """See `InNodes`."""
        self.source.run(LARGE_PIPES)
        super().start(mebibytes)

    def commands(self) -> Commands:
        """See `InNodes`."""
        pages = ("--lazy-pages", "--page-server", f"{self.source.address}:{PORT}", "--status-fd", STATUS)
        where = ("--images-dir", IMAGES, "--work-dir", WORK, "-o", "lazy.log")
        server = ("--page-server", "--address", self.source.address, "--port", str(PORT))
        daemon = ["criu", "lazy-pages", *server, *where]
        return Commands(self.checkpoint(*pages), self.restore("--lazy-pages"), daemon, f"{WORK}/lazy-pages.socket")
