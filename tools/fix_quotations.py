"""Update the line numbers of the code quotations in the documents. `make format` runs this.

A quotation is a link [`file`](path#L12) followed by a python block. tests/docs fails if a line number is wrong.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUOTATION = re.compile(r"(^\[`[^`]+`\]\()([^)#]+)#L\d+(\)\n```python\n(.*?)```)", re.MULTILINE | re.DOTALL)


def moved(document: Path, match: re.Match[str]) -> str:
    """Return a quotation with the current line number of its code."""
    before, target, after, quoted = match.groups()
    lines, expected = (document.parent / target).read_text().splitlines(), quoted.splitlines()
    found = [k + 1 for k in range(len(lines)) if lines[k : k + len(expected)] == expected]
    if len(found) != 1:
        sys.exit(
            f"{document.name}: expected the quoted code once in {target}, found it {len(found)} times. "
            "Correct the quotation by hand."
        )
    return f"{before}{target}#L{found[0]}{after}"


def main() -> None:
    """Update every document."""
    for document in sorted((ROOT / "docs").glob("*.md")):
        text = document.read_text()
        corrected = QUOTATION.sub(lambda match, document=document: moved(document, match), text)  # type: ignore[misc]
        if corrected != text:
            document.write_text(corrected)


if __name__ == "__main__":
    main()
