"""The campaigns: what a release runs, how often, and what is counted. Imports the standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Campaign(NamedTuple):
    """Tests that are run again and again, each time with another seed."""

    promise: str
    """The promise that they try to break, for the table."""

    tests: tuple[str, ...]
    """What pytest is told to run."""

    counts: str
    """What is counted: "tests", or a name that the tests report (see the fixture `campaign`)."""

    release: int
    """How many of them a release runs."""

    variables: dict[str, str] = {}  # noqa: RUF012 - nothing changes it
    """Environment variables of a round."""

    adds: dict[str, int] = {}  # noqa: RUF012 - nothing changes it
    """What a round does that its tests do not report."""


CAMPAIGNS: dict[str, Campaign] = {
    "kills": Campaign(
        "level `process`: kills at random moments lose no acknowledged push",
        ("tests/server/test_process_level.py::test_kills_at_random_moments_lose_nothing_that_was_acknowledged",),
        "kills",
        1000,
    ),
    "named-kills": Campaign(
        "level `process`: deaths at named places of a push, of its record and of its recovery",
        ("tests/server/test_named_kills.py",),
        "tests",
        160,
    ),
    "client-kills": Campaign(
        "our client pushes through kills without noticing",
        ("tests/client/test_process_level.py::test_pushes_go_on_through_kills",),
        "kills",
        200,
    ),
    "histories": Campaign(
        "models with random settings have the library's bits through changes, kills and snapshots",
        ("tests/client/test_random_histories.py",),
        "models",
        10_000,
    ),
    "crash-images": Campaign(
        "every state of an update, made by single steps, is recovered to the right bits",
        ("tests/library/test_crash_images.py",),
        "tests",
        1,
    ),
    "power": Campaign(
        "level `disk`: ends at random moments lose no acknowledged push",
        ("tests/server/test_disk_level.py",),
        "kills",
        1000,
    ),
    "power-images": Campaign(
        "level `disk`: every legal state of the files after a power failure is recovered",
        ("tests/server/test_power_loss.py",),
        "images",
        100_000,
    ),
    "settings-kills": Campaign(
        "changes of a model's settings survive deaths at named places",
        ("tests/server/test_settings_kills.py",),
        "tests",
        200,
    ),
    "format-kills": Campaign(
        "state in 8 bits, bfloat16 and averages survives kills with the library's bits",
        ("tests/server/test_state_formats_kills.py",),
        "tests",
        200,
    ),
    "rounds": Campaign(
        "`mode=sync`: no schedule of a round applies a gradient twice or answers it wrongly",
        ("tests/server/test_round_schedules.py",),
        "schedules",
        100_000,
    ),
    "round-kills": Campaign(
        "`mode=sync`: a held gradient is in its round after kills",
        ("tests/server/test_round_kills.py",),
        "tests",
        200,
    ),
    "memory-kills": Campaign(
        "level `memory`: kills restore whole versions only",
        ("tests/server/test_kills.py",),
        "kills",
        200,
    ),
    "ledger": Campaign(
        "a push is applied exactly once, however often and late it is sent",
        ("tests/server/test_push_ledger.py::TestExactlyOnce", "tests/server/test_openings.py"),
        "sequences",
        100_000,
        {"SEQUENCES": "4000"},
        {"sequences": 4000},
    ),
    "simulator": Campaign(
        "the model and its recovery in virtual time, on a network and a machine with faults",
        ("tests/server/test_simulated_crashes.py",),
        "schedules",
        10_000_000,
        {"SIMULATED": "100000"},
    ),
    "rewinds": Campaign(
        "every flipped bit and truncation of a snapshot, its manifest and a journal is found",
        ("tests/server/test_rewind.py", "tests/server/test_journal.py", "tests/server/test_snapshot.py"),
        "tests",
        1,
    ),
    "files": Campaign(
        "a server that dies or fails before any operation on a file keeps what was saved",
        ("tests/server/test_saving.py", "tests/server/test_failures.py"),
        "tests",
        1,
    ),
    "pulls": Campaign(
        "a pull is one version, whole, and not older than was asked for, on both transports",
        ("tests/client/test_whole_pulls.py",),
        "pulls",
        1_000_000,
    ),
    "bad-numbers": Campaign(
        "a push with a number that no update may take changes nothing, wherever the number is",
        ("tests/server/test_bad_numbers.py",),
        "refused",
        10_000,
    ),
    "soak": Campaign(
        "a server that works for long takes no more memory, descriptors, threads and disk",
        ("tests/server/test_soak.py",),
        "turns",
        200_000,
        {"SOAK_TURNS": "3000"},
    ),
    "file-faults": Campaign(
        "file operations of a real server process fail by libfiu: nothing acknowledged is lost",
        ("tests/server/test_file_faults.py",),
        "faults",
        1000,
        {"FILE_FAULTS": "6"},
    ),
    "disk-faults": Campaign(
        "a failed fsync ends the server, a full disk makes it read-only, no operation that fails loses a push",
        ("tests/server/test_disk_failures.py",),
        "tests",
        1,
    ),
    "archives": Campaign(
        "`verify` finds every flipped byte, `restore` and `export` give the bits back",
        ("tests/cli/test_verify.py", "tests/server/test_restoring.py", "tests/server/test_exchange.py"),
        "tests",
        1,
    ),
    "supervision": Campaign(
        "the supervisor starts a server again, or says why not",
        ("tests/cli/test_supervision.py",),
        "tests",
        200,
    ),
    "malformed": Campaign(
        "malformed requests never crash a server, hang it, or take more than its budget",
        ("tests/server/test_malformed.py",),
        "requests",
        1_000_000,
    ),
    "half-open": Campaign(
        "silent, slow and half-open calls hold up no other",
        ("tests/server/test_half_open.py", "tests/server/test_stalls.py"),
        "tests",
        250,
    ),
    "floods": Campaign(
        "one client cannot exhaust the server",
        ("tests/server/test_exhaustion.py",),
        "tests",
        200,
    ),
    "stops": Campaign(
        "stopping saves first and is quick",
        ("tests/server/test_stopping.py",),
        "tests",
        200,
    ),
    "late": Campaign(
        "a message that arrives late or twice changes nothing that a newer one decided",
        ("tests/client/test_late.py",),
        "tests",
        2000,
    ),
    "forks": Campaign(
        "a forked process shares no session with its parent",
        ("tests/client/test_forks.py",),
        "tests",
        500,
    ),
    "exits": Campaign(
        "an interpreter ends at once, whatever a client was doing",
        ("tests/client/test_exit.py",),
        "tests",
        1000,
    ),
    "interrupts": Campaign(
        "Ctrl-C at any moment leaves a client that works",
        ("tests/client/test_interrupts.py",),
        "tests",
        1000,
    ),
}
