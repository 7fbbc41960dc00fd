"""The promises of the parameter server: which tests show each, how much of it CI runs, and which campaign repeats it.

A promise without a test, a count or a campaign fails tests/torture/test_promises.py. Imports the standard library only.
"""

from __future__ import annotations

from typing import NamedTuple


class Promise(NamedTuple):
    """A promise and its proof."""

    text: str
    """What is promised."""

    tests: tuple[str, ...]
    """Files of tests, or single tests, that CI runs."""

    in_ci: str
    """How much of it one run of CI does; begins with a number, "all" or "always"."""

    campaigns: tuple[str, ...]
    """Campaigns that repeat it with other seeds; empty: `why_no_campaign` says why."""

    missing: str = ""
    """What the proof lacks."""

    why_no_campaign: str = ""
    """Why more runs of it would show nothing new."""


SERVER, CLIENT, GUARDS = "tests/server/", "tests/client/", "tests/guards/"

PROMISES: dict[str, Promise] = {
    "P1": Promise(
        "An acknowledged push at `process` survives kill -9 of the server, of its supervisor, or of both.",
        (SERVER + "test_process_level.py", SERVER + "test_named_kills.py", "tests/library/test_crash_images.py"),
        "50 kills, and all images of a single-stepped update",
        (
            "kills",
            "named-kills",
            "client-kills",
            "histories",
            "settings-kills",
            "format-kills",
            "crash-images",
            "round-kills",
        ),
    ),
    "P2": Promise(
        "An acknowledged push at `disk` survives power loss.",
        (SERVER + "test_power_loss.py", SERVER + "test_disk_level.py"),
        "all prefixes of one run, 60 images of each, and 25 power failures of a server",
        ("power", "power-images"),
        "images of rounds of mode sync",
    ),
    "P3": Promise(
        "A push is applied exactly once, however often it is sent, across restarts of either side.",
        (SERVER + "test_push_ledger.py", SERVER + "test_simulated_crashes.py", SERVER + "test_round_schedules.py"),
        "700 sequences of the ledger, 500 schedules of the simulator, and 10,300 of rounds",
        ("ledger", "simulator", "rounds"),
        "1,000 sequences of the ledger in CI; rounds in the simulator with virtual time",
    ),
    "P4": Promise(
        "A torn or half-written snapshot is never loaded; the one before is.",
        (SERVER + "test_snapshot.py::test_every_truncation_is_detected", SERVER + "test_saving.py"),
        "all offsets of a small snapshot, and a death before each operation",
        ("rewinds", "files", "memory-kills"),
        "1,000 large snapshots",
    ),
    "P5": Promise(
        "A corrupt byte is found and never used.",
        (
            SERVER + "test_snapshot.py::test_every_flipped_bit_is_detected",
            SERVER + "test_rewind.py::test_every_flipped_bit_of_manifest_and_run_is_detected",
            SERVER + "test_segment.py",
            "tests/cli/test_verify.py",
        ),
        "all bits of a small snapshot, manifest and journal",
        ("rewinds", "archives"),
        "10,000 random places of large files",
    ),
    "P6": Promise(
        "Recovery has the bits of never having crashed.",
        (SERVER + "test_process_level.py", SERVER + "test_disk_level.py", CLIENT + "test_random_histories.py"),
        "all kills and images of P1 to P3, by replay",
        ("kills", "power", "histories", "power-images"),
    ),
    "P7": Promise(
        "A pull has one version, whole; versions have no gaps.",
        (
            SERVER + "test_concurrency.py::test_a_pull_during_pushes_returns_one_version",
            CLIENT + "test_whole_pulls.py",
        ),
        "10,200 pulls",
        ("pulls",),
    ),
    "P8": Promise(
        "Memory stays within the budget under any load; what does not fit is told when to retry.",
        (
            SERVER + "test_budget.py",
            SERVER + "test_exhaustion.py",
            SERVER + "test_concurrency.py::test_transfers_beyond_the_budget_are_told_to_retry",
        ),
        "46 attacks with measured memory",
        ("floods",),
        "64 clients for a minute in CI, and for an hour",
    ),
    "P9": Promise(
        "A slow, stopped or dead worker holds up no other, and no round longer than its timeout.",
        (SERVER + "test_half_open.py", SERVER + "test_stalls.py", SERVER + "test_rounds.py"),
        "38 scenarios of async, and the timeouts and backup workers of sync",
        ("half-open", "rounds"),
    ),
    "P10": Promise(
        "A push with a NaN, an infinity or a number out of bounds is rejected and changes no bit; its retry is too.",
        (
            SERVER + "test_bad_numbers.py",
            SERVER + "test_service.py::test_a_non_finite_push_is_rejected_and_so_is_its_retry",
        ),
        "300 pushes, 100 at each level, and 25 retries",
        ("bad-numbers",),
    ),
    "P11": Promise(
        "Malformed input never crashes or hangs a server, or takes more than its budget.",
        (SERVER + "test_malformed.py", SERVER + "test_request_limits.py"),
        "1,000 mutated requests",
        ("malformed",),
        "10,000 requests in CI",
    ),
    "P12": Promise(
        "No data are unpickled, evaluated or executed.",
        (GUARDS + "test_safety.py",),
        "always: every file of the package",
        (),
        why_no_campaign="it is a scan of all files",
    ),
    "P13": Promise(
        "Secure by default.",
        ("tests/remote/test_tokens.py", "tests/remote/test_off_loopback.py", "tests/remote/test_server_tls.py"),
        "all methods, scopes and models",
        (),
        why_no_campaign="the table of methods is complete",
    ),
    "P14": Promise(
        "SIGTERM drains: in-flight calls finish, a snapshot is taken, the exit status is 0.",
        (SERVER + "test_stopping.py", SERVER + "test_restart.py"),
        "22 stops",
        ("stops",),
    ),
    "P15": Promise(
        "A failed fsync is never acknowledged and stops the server; a full disk makes it read-only.",
        (SERVER + "test_disk_failures.py", SERVER + "test_file_faults.py", "tests/cli/test_supervision.py"),
        "all operations of a run, each failing once",
        ("disk-faults", "file-faults", "files"),
        "libfiu in CI: it may hang the start of a process",
    ),
    "P16": Promise(
        "No threading layer of Numba aborts the process.",
        ("tests/library/test_threads.py",),
        "3 threading layers",
        (),
        "the server's suite under each layer",
        why_no_campaign="there are three layers",
    ),
    "P17": Promise(
        "Old files and old clients keep working.",
        (SERVER + "test_replay.py", SERVER + "test_transcripts.py", SERVER + "test_snapshot.py"),
        "all golden files and transcripts",
        (),
        why_no_campaign="the files are fixed",
    ),
    "P18": Promise(
        "No leak, no drift.",
        (SERVER + "test_soak.py",),
        "360 turns of work with faults",
        ("soak",),
        "24 hours",
    ),
    "P19": Promise(
        "A forked child never shares a session, a sequence number or a thread with its parent.",
        (CLIENT + "test_forks.py",),
        "13 tests",
        ("forks",),
    ),
    "P20": Promise(
        "A message that arrives late, twice or after its successor changes nothing that a newer one decided.",
        (CLIENT + "test_late.py", SERVER + "test_late.py"),
        "all pairs of calls",
        ("late",),
    ),
    "P21": Promise(
        "Stopping saves first and is quick, whatever others do.",
        (SERVER + "test_stopping.py",),
        "22 scenarios",
        ("stops",),
    ),
    "P22": Promise(
        "The state id changes whenever history does.",
        (SERVER + "test_rewind.py",),
        "all 19 kinds of tampering",
        ("rewinds",),
    ),
    "P23": Promise(
        "One client cannot exhaust the server.",
        (SERVER + "test_exhaustion.py", SERVER + "test_descriptors.py"),
        "46 attacks",
        ("floods",),
        "random mixes for an hour",
    ),
    "P24": Promise(
        "The interpreter of a client exits at once, whatever was under way.",
        (CLIENT + "test_exit.py", CLIENT + "test_interrupts.py"),
        "30 states of a client or more",
        ("exits", "interrupts"),
    ),
}


def as_table() -> str:
    """Return the promises as a Markdown table, for a document in docs/."""
    lines = ["| | | | | |", "|---|---|---|---|---|"]
    for number, each in PROMISES.items():
        tests = ", ".join(
            f"[{test.rpartition('::')[2].rpartition('/')[2]}](../{test.partition('::')[0]})" for test in each.tests
        )
        campaigns = ", ".join(f"`{name}`" for name in each.campaigns) or f"none: {each.why_no_campaign}"
        lines.append(f"| {number} | {each.text} {tests} | {each.in_ci} | {campaigns} | {each.missing} |")
    return "\n".join(lines) + "\n"
