"""What a fit shows while it runs."""

from __future__ import annotations

import io
import sys

import pytest

from deepSTRF.training import Fitter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_quiet_when_stderr_is_no_terminal(kit, recording, capfd):
    Fitter(kit.linear(), *kit.loaders(recording), max_epochs=2).fit()
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal(kit, recording, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    Fitter(kit.linear(), *kit.loaders(recording), max_epochs=2).fit()
    shown = sys.stderr.getvalue()
    assert "val_cc_norm" in shown
    assert "best" in shown


def test_a_log_function_gets_the_records_and_silences_the_bar(kit, recording, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    seen = []
    fitter = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=2, log_fn=seen.append)
    assert fitter.fit() == seen
    assert sys.stderr.getvalue() == ""


def test_progress_true_draws_the_bar_beside_a_log_function(kit, recording, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    Fitter(kit.linear(), *kit.loaders(recording), max_epochs=1, log_fn=lambda d: None, progress=True).fit()
    assert "fitting" in sys.stderr.getvalue()


def test_progress_is_one_of_three(kit, recording):
    with pytest.raises(ValueError, match="progress must be"):
        Fitter(kit.linear(), *kit.loaders(recording), progress="yes")
