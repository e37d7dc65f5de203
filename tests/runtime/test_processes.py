"""How a program ends: at once when it fails, in order when it is asked to stop or interrupted."""

import os
import signal

import pytest

from simjax.errors import ConfigError
from simjax.runtime import processes


class EndedError(Exception):
    """Stands for the end of the process; threads or open files do not delay it."""


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
def test_a_single_process_that_fails_ends_there_and_then(ended, capsys, error, status, traceback):
    with pytest.raises(EndedError), processes.failing_at_once():
        raise error
    said = capsys.readouterr().err
    assert ended == [status]
    assert ("Traceback" in said) == traceback
    assert f"simjax: {error or 'interrupted.'}" in said


def test_an_orderly_end_stays_one(ended):
    with processes.failing_at_once():
        pass
    with pytest.raises(processes.Preempted), processes.failing_at_once():
        raise processes.Preempted(0)
    assert not ended


def test_ctrl_c_waits_until_the_end_of_the_block():
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), processes.interrupted_later():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest")
    assert done
    with pytest.raises(KeyboardInterrupt), processes.interrupted_later():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one ends the block")
    assert signal.getsignal(signal.SIGINT) is before
