"""The registry has every required case, each with a unique name."""

import pytest

from benchmarks.case import Quantity, Settings
from benchmarks.registry import CASES, chosen, named

# (name, limit, at least): issue 2, section 5, issue 3, section 7, issue 12, section 2.7, issue 14 and issue 16. Where
# they name no number, as for "flat", the 1.1 is our own, and so is the second of "cold/first-push".
ASKED = {
    "flat/100k/torch": (0.35, False),
    "flat/1m/torch": (0.8, False),
    "flat/50m/torch": (1.02, False),
    "flat/50m/loop": (0.9, True),
    "many/1000x1000/torch": (0.25, False),
    "many/resnet50/torch": (0.9, False),
    "adapters/10x100": (0.7, False),
    "adapters/resnet50": (1.0, False),
    "adapters/gpt2": (1.0, False),
    "adapters/gpt2-8bit": (0.8, False),
    "adapters/memory": (0, False),
    "phase/50m/torch": (0.55, False),
    "formats/8bit/torch": (0.8, False),
    "formats/8bit/bitsandbytes": (0.15, False),
    "formats/8bit/bytes": (10.1, False),
    "formats/bfloat16/torch": (0.55, False),
    "formats/bfloat16/stochastic": (1.0, False),
    "norm/50m/read": (1.15, False),
    "rows/dense": (0.05, False),
    "rows/torch": (1.0, False),
    **{
        f"scaling/{numbers}/{threads}": (1.1, False)
        for numbers in ("float32", "bfloat16", "8bit")
        for threads in ("all-threads", "one-thread")
    },
    **{f"denormals/{numbers}/ordinary": (1.1, False) for numbers in ("float32", "bfloat16", "8bit")},
    **{f"memory/50m/{what}": (4_000_000, False) for what in ("ours", "8bit", "bfloat16", "phase")},
    "start/import": (0.060, False),
    "start/first-update": (1.5, False),
    "start/second-step": (0, False),
    "cold/first": (3, False),
    "cold/first-large": (3, False),
    "cold/readme-torch": (8, False),
    "cold/service": (8, False),
    "cold/first-push": (1, False),
    "cold/warmup": (40, False),
    "service/push": (1.5, False),
    "service/push-process": (1.3, False),
    "service/push-rpc": (1.1, False),
    "service/push-rpc-bfloat16": (0.65, False),
    "service/push-pull-rpc-bfloat16": (0.65, False),
    "same_host/push": (0.9, False),
    "same_host/push-shared": (0.75, False),
    "same_host/push-view": (0.6, False),
    "small/rate": (1500, True),
    "small/p99": (0.1, False),
    "service/client-imports": (0, False),
    **{f"durability/{what}": (1.25, False) for what in ("push-4mb", "push-100mb", "apply-1m", "apply-25m")},
    **{f"durability/{what}": (1.3, False) for what in ("disk-4mb", "disk-100mb")},
    "durability/recovery": (2, False),
    **{f"served/{what}-{size}": (1.25, False) for what in ("8bit", "bfloat16", "average") for size in ("4mb", "100mb")},
    "busy/10m/ours": (2.5, False),
    **{f"remote/{what}": (1.25, False) for what in ("push/1ms", "push/10ms", "push/50ms", "tls/100m", "tls/4k")},
    **{f"beside/{what}/{how}": (3.0, False) for what in ("snapshot", "update") for how in ("median", "p99")},
    **{f"beside/own-snapshot/{how}": (2.0, False) for how in ("median", "p99")},
}


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def test_every_bar_has_its_required_limit() -> None:
    bars = {case.name: (case.bar.limit, case.bar.at_least) for case in CASES if case.bar}
    assert bars == ASKED


def test_every_comparison_names_its_peer() -> None:
    assert [case.name for case in CASES if case.quantity is not Quantity.VALUE and not case.peer] == []


def test_flat_sizes_are_compared_with_every_peer() -> None:
    for size in ("100k", "1m", "50m"):
        peers = {case.name.rpartition("/")[2] for case in chosen([f"flat/{size}"])}
        assert peers >= {"torch", "deepspeed", "optax", "numpy"}


def test_cases_are_selected_by_name_prefix() -> None:
    assert {case.theme for case in chosen(["flat/1m", "many"])} == {"flat", "many"}
    assert chosen([]) == [case for case in CASES if not case.is_long]
    assert named("flat/1m/torch").name == "flat/1m/torch"


def test_a_single_thread_case_runs_on_one_thread() -> None:
    settings = Settings(threads=2)
    assert named("scaling/float32/one-thread").settings(settings).threads == 1
    assert named("scaling/float32/all-threads").settings(settings) == settings


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(LookupError, match="'flat/7'"):
        chosen(["flat/7"])
    with pytest.raises(LookupError, match="'flat'"):
        named("flat")
