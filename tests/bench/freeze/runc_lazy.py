"""Bare runc with CRIU's lazy pages over the network: the container goes on at once, its memory follows. The floor."""

from __future__ import annotations

from bench.freeze.containers import IMAGES, WORK, Commands
from bench.freeze.node import STATUS
from bench.freeze.runc import Runc

PORT = 27077


class RuncLazy(Runc):
    """Only what is not memory is copied while the container stands still."""

    name = "runc-lazy"

    def commands(self) -> Commands:
        """See `InNodes`."""
        pages = ("--lazy-pages", "--page-server", f"{self.source.address}:{PORT}", "--status-fd", STATUS)
        where = ("--images-dir", IMAGES, "--work-dir", WORK, "-o", "lazy.log")
        server = ("--page-server", "--address", self.source.address, "--port", str(PORT))
        daemon = ["criu", "lazy-pages", *server, *where]
        return Commands(self.checkpoint(*pages), self.restore("--lazy-pages"), daemon, f"{WORK}/lazy-pages.socket")
