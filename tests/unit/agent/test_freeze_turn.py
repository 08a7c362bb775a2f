"""One freeze after another, as long as nobody has to wait for too long."""

from __future__ import annotations

import asyncio

import pytest

from migration_agent.freeze_turn import FreezeTurn


def nothing() -> None:
    """Nobody gives up."""


async def test_one_after_another() -> None:
    turn, log = FreezeTurn(), list[str]()

    async def freeze(name: str) -> None:
        async with turn.mine(nothing):
            log.append(f"{name} begins")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            log.append(f"{name} ends")

    await asyncio.gather(*(freeze(name) for name in "abc"))
    assert log == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_who_has_waited_long_enough_goes_in_all_the_same_and_leaves_the_turn_alone() -> None:
    turn = FreezeTurn(patience=0.05)
    async with turn.mine(nothing):
        async with turn.mine(nothing):
            pass
        assert turn._taken.locked()  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(1), turn.mine(nothing):
        pass


async def test_who_gives_up_while_waiting_takes_no_turn() -> None:
    turn, asked = FreezeTurn(), 0

    def give_up() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise KeyError("given up")

    async with turn.mine(nothing):
        with pytest.raises(KeyError):
            async with turn.mine(give_up):
                pytest.fail("it is not its turn")
    async with asyncio.timeout(1), turn.mine(nothing):
        pass
