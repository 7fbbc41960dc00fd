"""Run the campaigns at the counts of a release: `make torture`, or python -m tests.torture.

    make torture                                  everything that is not done yet
    make torture ARGS="--minutes 30"              no new round after half an hour
    make torture ARGS="--only kills power"        these campaigns
    make torture ARGS="--seed 17 --only kills"    one round with this seed, which is not noted
    make torture ARGS="--again"                   the rounds that failed, once more with their seeds
    make torture ARGS="--table"                   what ran so far

Each round has a seed, which is printed. What ran is noted in build/torture.jsonl, so a run that was stopped goes on
where it was. The output of a round that fails is kept beside it.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.torture.campaigns import CAMPAIGNS, Campaign
from tests.torture.rounds import ROOT, Round, append, as_table, latest, play, read, total, unfinished


def main(words: list[str] | None = None) -> int:
    """Run rounds until all campaigns are done, or the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=ROOT / "build" / "torture.jsonl", help="what ran")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round after this time")
    parser.add_argument(
        "--only", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS), metavar="CAMPAIGN", help="only these"
    )
    parser.add_argument("--seed", type=int, help="run one round of each campaign with this seed")
    parser.add_argument("--again", action="store_true", help="run the rounds that failed, with their seeds, once more")
    parser.add_argument("--table", action="store_true", help="print what ran so far, and run nothing")
    options = parser.parse_args(words)
    campaigns = {name: CAMPAIGNS[name] for name in CAMPAIGNS if name in options.only}
    rounds = read(options.file)
    end = time.monotonic() + 60 * options.minutes
    failed = 0
    for name, seed in [] if options.table else _wanted(options, campaigns, rounds):
        if time.monotonic() >= end:
            break
        campaign = campaigns[name]
        print(f"{name}: seed {seed} ... ", end="", flush=True)
        log = options.file.parent / f"torture-{name}-{seed}.log"
        done = play(name, campaign, seed, log)
        failed += done.failed
        verdict = f"{done.failed} FAILED, see {log}" if done.failed else "ok"
        if options.seed is None:
            append(options.file, done)
            rounds.append(done)
        did = f"{done.counts.get(campaign.counts, 0):,} {campaign.counts} in {done.seconds} s"
        print(f"{verdict}: {did}; {total(rounds, name, campaign):,} of {campaign.release:,}", flush=True)
    print("\n" + as_table(campaigns, rounds))
    return 1 if failed else 0


def _wanted(
    options: argparse.Namespace, campaigns: dict[str, Campaign], rounds: list[Round]
) -> Iterator[tuple[str, int]]:
    """Yield the campaign and the seed of each round to run; `rounds` grows meanwhile."""
    if options.seed is not None:
        yield from ((name, options.seed) for name in campaigns)
    elif options.again:
        yield from [(each.campaign, each.seed) for each in latest(rounds) if each.failed and each.campaign in campaigns]
    else:
        while name := next(unfinished(campaigns, rounds), None):
            yield name, secrets.randbelow(2**31)


if __name__ == "__main__":
    sys.exit(main())
