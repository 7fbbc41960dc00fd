"""Contestants take turns in order, equally often. No timing is asserted."""

from benchmarks.case import Settings
from benchmarks.measure import interleave, rotate


def busy() -> int:
    return sum(range(2000))


def test_contestants_alternate_and_are_called_equally_often() -> None:
    calls: list[str] = []

    def step(name: str) -> None:
        calls.append(name)
        busy()

    pairs = interleave(lambda: step("A"), lambda: step("B"), Settings(seconds=0.0, fewest_pairs=3))
    turns = [name for k, name in enumerate(calls) if k == 0 or calls[k - 1] != name]
    assert len(pairs) == 3
    assert calls.count("A") == calls.count("B")
    assert turns[-6:] == ["A", "B"] * 3


def test_the_setup_runs_before_every_call() -> None:
    calls: list[str] = []
    before = (lambda: calls.append("before A"), lambda: calls.append("before B"))
    pairs = interleave(
        lambda: calls.append("A"), lambda: calls.append("B"), Settings(seconds=0.0, fewest_pairs=2), before
    )
    assert len(pairs) == 2
    assert set(zip(calls[::2], calls[1::2], strict=True)) == {("before A", "A"), ("before B", "B")}


def test_every_measurement_is_a_positive_time() -> None:
    pairs = interleave(busy, busy, Settings(seconds=0.1, fewest_pairs=2))
    assert all(ours > 0 and peer is not None and peer > 0 for ours, peer in pairs)


def test_any_number_of_contestants_take_turns() -> None:
    calls: list[str] = []

    def step(name: str) -> None:
        calls.append(name)
        busy()

    steps = [lambda name=name: step(name) for name in "ABC"]  # type: ignore[misc]
    rounds = rotate(steps, Settings(seconds=0.0, fewest_pairs=2))
    turns = [name for k, name in enumerate(calls) if k == 0 or calls[k - 1] != name]
    assert [len(each) for each in rounds] == [3, 3]
    assert turns[-6:] == list("ABCABC")
    assert len({calls.count(name) for name in "ABC"}) == 1
