"""Choosing an implementation."""

import logging
import re

import pytest

from stt_kernels import dispatch

REASONS = {
    "fast": lambda: "it needs a machine that is not here.",
    "slow": lambda: None,
}


def test_none_takes_the_first_of_the_platform_that_can():
    assert dispatch.choose(None, ("fast", "slow"), REASONS) == "slow"


def test_a_sequence_takes_the_first_that_can():
    assert dispatch.choose(["fast", "slow"], (), REASONS) == "slow"


def test_a_name_never_means_another():
    with pytest.raises(NotImplementedError, match="fast: it needs a machine that is not here"):
        dispatch.choose("fast", ("slow",), REASONS)


@pytest.mark.parametrize("implementation", ["quick", ["slow", "quick"], []])
def test_unknown_names_are_refused(implementation):
    expected = "implementation must be None, one of fast, slow, or a sequence of them; got "
    with pytest.raises(ValueError, match=re.escape(f"{expected}{implementation!r}.")):
        dispatch.choose(implementation, ("slow",), REASONS)


def test_falling_back_is_logged_once(caplog):
    reasons = {"first": lambda: "it is not for this test.", "second": lambda: None}
    with caplog.at_level(logging.INFO, logger="stt_kernels"):
        for _ in range(3):
            dispatch.choose(None, ("first", "second"), reasons)
    assert len(caplog.messages) == 1
    assert "it is not for this test" in caplog.messages[0]
