"""Rounds of the campaigns: each is a run of pytest with a seed of its own, and one line in the file of what ran.

Imports the campaigns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.torture.campaigns import Campaign

ROOT = Path(__file__).resolve().parents[2]
_SUMMARY = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


class Round(NamedTuple):
    """What one round did."""

    campaign: str
    """Name of the campaign."""

    seed: int
    """Of the random choices of its tests."""

    counts: dict[str, int]
    """What the tests report, and "tests": how many passed."""

    failed: int
    """Tests that failed."""

    seconds: float
    """How long it took."""

    commit: str
    """What was tested."""


def read(path: Path) -> list[Round]:
    """Return what ran so far. A line that was cut off by a kill of this program is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(Round(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return found


def append(path: Path, done: Round) -> None:
    """Add a round to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write(("\n" if is_torn else "") + json.dumps(done._asdict()) + "\n")


def latest(rounds: list[Round]) -> list[Round]:
    """Return the last run of each round. One that had failed may have been run again, with its seed."""
    return list({(each.campaign, each.seed): each for each in rounds}.values())


def total(rounds: list[Round], name: str, campaign: Campaign) -> int:
    """Return how much of a campaign was done."""
    return sum(each.counts.get(campaign.counts, 0) for each in latest(rounds) if each.campaign == name)


def unfinished(campaigns: dict[str, Campaign], rounds: list[Round]) -> Iterator[str]:
    """Yield the campaigns that have not reached the counts of a release; the least complete first."""
    share = {name: total(rounds, name, each) / each.release for name, each in campaigns.items()}
    yield from sorted((name for name in campaigns if share[name] < 1), key=lambda name: share[name])


def play(name: str, campaign: Campaign, seed: int, log: Path) -> Round:
    """Run a campaign's tests once.

    Args:
        name: of the campaign.
        campaign: what to run.
        seed: of the random choices.
        log: the file that gets the output if a test fails.
    """
    began = time.monotonic()
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as reports:
        variables = {"CAMPAIGN_SEED": str(seed), "CAMPAIGN_REPORTS": reports.name, **campaign.variables}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
        run = subprocess.run(
            [*command, "-m", "not parity", *campaign.tests],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        counts: Counter[str] = Counter()
        for line in reports:
            counts.update(json.loads(line))
    summary = {word.rstrip("s"): int(number) for number, word in _SUMMARY.findall(run.stdout.splitlines()[-1])}
    counts["tests"] = summary.get("passed", 0)
    if not run.returncode:
        counts.update(campaign.adds)
    failed = summary.get("failed", 0) + summary.get("error", 0)
    if run.returncode and not failed:
        failed = 1  # pytest itself ended
    if failed:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(run.stdout + run.stderr)
    return Round(name, seed, dict(counts), failed, round(time.monotonic() - began, 1), commit())


def commit() -> str:
    """Return the commit of the working tree, with a plus sign if something in it was changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short=9", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")


def as_table(campaigns: dict[str, Campaign], rounds: list[Round]) -> str:
    """Return the rounds as a Markdown table, for a document in docs/."""
    lines = ["| | | | | |", "|---|---|---|---|---|"]
    for name, campaign in campaigns.items():
        own = [each for each in latest(rounds) if each.campaign == name]
        counts: Counter[str] = Counter()
        for each in own:
            counts.update(each.counts)
        others = [f"{counts[key]:,} {key}" for key in sorted(counts) if key not in (campaign.counts, "tests")]
        ran = ", ".join([f"{counts[campaign.counts]:,} of {campaign.release:,} {campaign.counts}", *others])
        failed = sum(each.failed for each in own)
        before = sum(each.failed for each in rounds if each.campaign == name) - failed
        verdict = f"**{failed} failed**" if failed else "nothing failed" if own else "not run yet"
        verdict += f", {before} failed before they were run again" if before else ""
        files = dict.fromkeys(each.partition("::")[0] for each in campaign.tests)
        links = ", ".join(f"[{Path(each).name}](../{each})" for each in files)
        rounds_of = f"{len(own)} round{'s' * (len(own) != 1)}"
        cells = (f"`{name}`", f"{campaign.promise}: {links}", ran, rounds_of, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
