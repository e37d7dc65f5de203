"""Exits: immediate after errors, regular after SIGTERM, deferred Ctrl-C."""

import os
import signal

import pytest

from simjax.errors import ConfigError
from simjax.runtime import processes


class EndedError(Exception):
    """Raised in place of os._exit, which waits for no threads or files."""


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """Exit statuses of os._exit."""
    statuses = []

    def end(status: int):
        statuses.append(status)
        raise EndedError

    monkeypatch.setattr(os, "_exit", end)
    return statuses


@pytest.mark.parametrize(
    ("error", "status", "traceback"),
    [
        (ConfigError("batch = 0 must be positive."), 1, False),
        (ValueError("a bug"), 1, True),
        (KeyboardInterrupt(), 130, False),
    ],
)
def test_a_failing_process_exits_immediately(ended, capsys, error, status, traceback):
    with pytest.raises(EndedError), processes.failing_at_once():
        raise error
    said = capsys.readouterr().err
    assert ended == [status]
    assert ("Traceback" in said) == traceback
    assert f"simjax: {error or 'interrupted.'}" in said


def test_regular_exits_are_unchanged(ended):
    with processes.failing_at_once():
        pass
    with pytest.raises(processes.Preempted), processes.failing_at_once():
        raise processes.Preempted(0)
    assert not ended


def test_ctrl_c_is_deferred_to_the_end_of_the_block():
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), processes.interrupted_later():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest")
    assert done
    with pytest.raises(KeyboardInterrupt), processes.interrupted_later():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C must end the block")
    assert signal.getsignal(signal.SIGINT) is before
