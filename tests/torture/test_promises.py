"""Every promise has tests that CI runs, a count, and a campaign of `make torture` or the reason why it needs none."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]  # for the program, which is no test itself

from tests.torture.campaigns import CAMPAIGNS  # noqa: E402
from tests.torture.promises import PROMISES, as_table  # noqa: E402

COUNT = re.compile(r"(\d[\d,]*|all|always)\b")


def test_the_promises_are_complete():
    assert list(PROMISES) == [f"P{number}" for number in range(1, 25)]


@pytest.mark.parametrize("number", PROMISES)
def test_a_promise_has_tests_a_count_and_a_campaign(number):
    promise = PROMISES[number]
    assert promise.tests
    for test in promise.tests:
        file, _, name = test.partition("::")
        assert f"def {name or 'test_'}" in (ROOT / file).read_text(), test
    assert COUNT.match(promise.in_ci), promise.in_ci
    assert bool(promise.campaigns) != bool(promise.why_no_campaign)
    assert set(promise.campaigns) <= CAMPAIGNS.keys()


def test_every_campaign_belongs_to_a_promise():
    used = {name for promise in PROMISES.values() for name in promise.campaigns}
    assert used | {"supervision"} == CAMPAIGNS.keys()  # what the supervisor does is promised by P1 in part only


def test_the_guarantees_have_the_table_of_promises():
    text = (ROOT / "docs" / "guarantees.md").read_text()
    assert text.split("<!-- promises:begin -->\n")[1].split("<!-- promises:end -->")[0] == as_table()
