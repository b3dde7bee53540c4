import os
import signal

import pytest

from noisytwins_jax.training.fault_tolerance.signals import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
        assert (stop.name, stop.exit_status) == (number.name, 128 + number)
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_more_sigterms_change_nothing():
    with StopSignal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
