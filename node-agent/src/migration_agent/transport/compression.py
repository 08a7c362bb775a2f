"""Whether compressing pays: it must take less than the bytes that it saves would need on their way."""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.2
"""Of the newest measurement; a few chunks decide."""
_PROBE_EVERY = 32
"""Chunks between two attempts while it does not pay: the content, or the way, may change."""


@dataclass
class Payoff:
    """Measured on the chunks as they go; pure, for one lane. Times are seconds for one plain byte."""

    wanted: bool = True
    """False: never compress."""
    _compressing: float | None = None
    _ratio: float = 1.0
    """Compressed bytes for one plain byte."""
    _carrying: float | None = None
    """Per byte that is carried, compressed or not."""
    _since_probe: int = 0

    def decide(self) -> bool:
        """Say whether the next chunk is to be compressed."""
        if not self.wanted:
            return False
        if self._compressing is None or self._carrying is None or self.pays:
            return True
        self._since_probe += 1
        if self._since_probe >= _PROBE_EVERY:
            self._since_probe = 0
            return True
        return False

    @property
    def pays(self) -> bool:
        """Whether it did for the latest chunks."""
        if self._compressing is None or self._carrying is None:
            return False
        return self._compressing < (1 - self._ratio) * self._carrying

    def compressed(self, plain: int, packed: int, seconds: float) -> None:
        """Note what compressing a chunk of `plain` bytes took and brought."""
        self._compressing = _mixed(self._compressing, seconds / plain)
        self._ratio = _mixed(self._ratio, packed / plain)

    def carried(self, count: int, seconds: float) -> None:
        """Note how long the carrier took for so many bytes."""
        self._carrying = _mixed(self._carrying, seconds / count)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
