"""python -m benchmarks.gpu.worker STAGE JOURNAL UNTIL LANE LANES: runs those items of a stage that have no result yet.

UNTIL is a time in seconds since 1970. No item begins after it. Of LANES processes, each takes every LANES-th item. The
exit status is 3 if the GPU answers no more in this process, as after an access to memory that is not there: another
process may go on.
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu.journal import Finding, Journal, Record
from benchmarks.gpu.stages import BY_NAME, Item

BROKEN = 3


def main(name: str, path: str, until: str, lane: str, lanes: str) -> int:
    """Run a stage's items; return the exit status."""
    journal, end, own = Journal(Path(path)), float(until), int(lane)
    answered = {record.item for record in journal.results(name)}
    for item in itertools.islice(BY_NAME[name].items(), own, None, int(lanes)):
        if item.name in answered:
            continue
        if time.time() >= end:
            journal.add(Record(name, item.name, "not run", "there was no time left", lane=own))
            continue
        journal.add(Record(name, item.name, "begun", lane=own))
        begin = time.perf_counter()
        finding = answer(item)
        seconds = time.perf_counter() - begin
        journal.add(Record(name, item.name, finding.outcome, finding.said, seconds, finding.data, own))
        if finding.is_good is False and not responds():
            return BROKEN
    return 0


def answer(item: Item) -> Finding:
    """Return what an item found; an exception is a finding too."""
    try:
        return item.answer()
    except Exception as error:  # of any kind: the items after it are still to run
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        said = " ".join(str(error).split())[:500]
        trace = traceback.format_exc()
        return Finding(f"{type(error).__name__} at {where}: {said}", False, {"traceback": trace})


def responds() -> bool:
    """Return whether the GPU still answers in this process."""
    try:
        from benchmarks.gpu.device import synchronize

        synchronize()
    except Exception:  # whatever the driver raises
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
