import os
import signal

import pytest

from hkdpipe.pipeline.signals import SIGNALS, stop_requests


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_to_stop(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with stop_requests(quiet=False) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert capfd.readouterr().err == "stopping at the next safe point (Ctrl-C again: at once)\n"


def test_a_second_interrupt_stops_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requests(quiet=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""
