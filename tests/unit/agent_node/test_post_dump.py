from __future__ import annotations

import threading

import pytest

from migration_agent.checkpoint.post_dump import Answer, PostDumpBroker


def test_the_work_runs_once_and_every_hook_gets_its_answer() -> None:
    broker = PostDumpBroker()
    runs: list[int] = []
    with broker.expect("m", "c", lambda: runs.append(1)) as expectation:
        assert not expectation.arrived
        assert broker.arrived("m", "c") is Answer.DONE
        assert broker.arrived("m", "c") is Answer.DONE
        assert expectation.arrived
    assert runs == [1]


def test_failed_work_fails_the_hook_and_is_kept_for_the_dump() -> None:
    broker = PostDumpBroker()

    def work() -> None:
        raise OSError("disk full")

    with broker.expect("m", "c", work) as expectation:
        assert broker.arrived("m", "c") is Answer.FAIL
        assert broker.arrived("m", "c") is Answer.FAIL
    assert str(expectation.failure) == "disk full"


@pytest.mark.parametrize(("migration", "container"), [("m", "other"), ("other", "c"), ("", "")])
def test_a_hook_nobody_expects_fails(migration: str, container: str) -> None:
    broker = PostDumpBroker()
    runs: list[int] = []
    with broker.expect("m", "c", lambda: runs.append(1)):
        assert broker.arrived(migration, container) is Answer.FAIL
    assert broker.arrived("m", "c") is Answer.FAIL
    assert not runs


def test_one_dump_at_a_time_for_a_container() -> None:
    broker = PostDumpBroker()
    with (
        broker.expect("m", "c", lambda: None),
        pytest.raises(RuntimeError, match="already being dumped"),
        broker.expect("m", "c", lambda: None),
    ):
        pass
    with broker.expect("m", "c", lambda: None):
        assert broker.arrived("m", "c") is Answer.DONE


def test_the_dump_does_not_end_while_the_work_runs() -> None:
    broker = PostDumpBroker()
    expected, started, go_on, ended = (threading.Event() for _ in range(4))

    def work() -> None:
        started.set()
        assert go_on.wait(10)

    def dump() -> None:
        with broker.expect("m", "c", work):
            expected.set()
            assert started.wait(10)
        ended.set()

    dumping = threading.Thread(target=dump)
    dumping.start()
    assert expected.wait(10)
    hook = threading.Thread(target=lambda: broker.arrived("m", "c"))
    hook.start()
    assert started.wait(10)
    assert not ended.wait(0.05)
    go_on.set()
    assert ended.wait(10)
    hook.join()
    dumping.join()
