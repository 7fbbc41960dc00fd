"""Settings of all tests: Hypothesis without deadlines, a default handler for Ctrl-C, the level of our log."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# A busy machine may take any time for an example or for making one; a failure prints what reproduces it.
hypothesis.settings.register_profile(
    "house", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# Thousands of runs that are to fail at the first: few examples, always the same, and no time spent on a smaller one.
hypothesis.settings.register_profile(
    "mutants",
    hypothesis.settings.get_profile("house"),
    max_examples=30,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "house")
hypothesis.settings.load_profile(PROFILE)

# Whoever starts the tests in the background may have them ignore Ctrl-C, and so the programs that tests start and end
# with it. A handler of Python's own is taken back in those.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of the network would not see it otherwise. The main files of the client run again without it: see tests/client.
os.environ.setdefault("NUMBA_ADAM_TRANSPORT", "network")


@pytest.fixture(autouse=True)
def _level_of_our_log() -> Iterator[None]:
    """`numba-adam serve` sets it for its own process, which in some tests is the one of all."""
    log = logging.getLogger("numba_adam")
    level = log.level
    yield
    log.setLevel(level)


class Campaign:
    """The seed of a test, and what it did. `make torture` gives a seed, and reads the counts."""

    def seed(self, usual: int) -> int:
        """Return the seed of this round; `usual`: that of an ordinary run."""
        return int(os.environ.get("CAMPAIGN_SEED", usual))

    def did(self, **counts: int) -> None:
        """Report what was done, such as kills=34."""
        if "CAMPAIGN_REPORTS" in os.environ:
            with Path(os.environ["CAMPAIGN_REPORTS"]).open("a") as file:
                file.write(json.dumps(counts) + "\n")


@pytest.fixture
def campaign() -> Campaign:
    return Campaign()


@pytest.fixture(autouse=True, scope="session")
def _memory_of_killed_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A killed server leaves its memory for the next one, which a test may never start: remove it at the end."""
    yield
    ours = os.fsencode(tmp_path_factory.getbasetemp().resolve()) + b"/"
    for owner in Path("/dev/shm", f"numba-adam-{os.geteuid()}").glob("*.owner"):
        if owner.read_bytes().startswith(ours):
            shutil.rmtree(owner.with_suffix(""), ignore_errors=True)
            owner.unlink()
