"""make bench, at its end: which ratios moved by more than the noise since the last accepted run.

    python -m tests.bench.guard --accept       keep today's ratios as the accepted ones

A ratio has moved when it differs by more than twice the noise of both runs together, and by more than 5% (*chosen*: below
that a shared machine tells nothing). Accepted ratios are kept in reports/reference/bench.json. Exit code 1: some moved.
"""

import argparse
import json
import math
import sys

from tests.bench.harness import ACCEPTED, ratios_of, show

LEAST = 0.05


def moved(accepted: dict[str, dict[str, float]], found: dict[str, dict[str, float]]) -> list[dict]:
    """The ratios of both that differ by more than the noise: name, accepted, now, noise."""
    rows = []
    for name in sorted(set(accepted) & set(found)):
        before, now = accepted[name], found[name]
        noise = math.hypot(before["noise"], now["noise"])
        if abs(now["ratio"] - before["ratio"]) > max(2 * noise, LEAST * before["ratio"]):
            rows.append({"ratio": name, "accepted": before["ratio"], "now": now["ratio"], "noise": noise})
    return rows


def main() -> None:
    """Compare, or accept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="keep what was measured as the accepted ratios")
    found = ratios_of()
    if parser.parse_args().accept:
        ACCEPTED.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{len(found)} ratios accepted: {ACCEPTED.name}")
        return
    rows = moved(json.loads(ACCEPTED.read_text()), found)
    if rows:
        show("moved by more than the noise", rows)
        sys.exit(1)
    print(f"{len(found)} ratios, none moved by more than the noise")


if __name__ == "__main__":
    main()
