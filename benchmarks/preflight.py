"""Measures `whyspike check` on every case that is a `Training`: is the sick one found, and the twin left alone?

    python benchmarks/preflight.py [--seeds 3] [--case NAME]

A row is a case: whether its cause can be seen before training at all (it has a preflight), in how many seeds the sick
training got a finding or a note of that cause, findings in the healthy twin, and the seconds of one check. The last
lines are the sums. Exit code 1 where less than 95 % are found or a twin has a finding.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter

import torch

from whyspike.case import PLAIN, cases
from whyspike.cause import Cause, find
from whyspike.preflight import check
from whyspike.training import Training

LEAST = 0.95


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':28} {'preflight':10} {'found':>7} {'as':10} {'twin':>6} {'seconds':>8}")
    found = possible = wrong = twins = 0
    for name, case in cases().items():
        if asked.case not in (None, name) or not isinstance(case.sick(0, PLAIN), Training):
            continue
        has = type(find(case.cause)).preflight is not Cause.preflight
        hits, kinds, alarms, seconds = 0, set(), 0, []
        for seed in range(asked.seeds):
            began = perf_counter()
            made = check(case.sick(seed, PLAIN))  # type: ignore[arg-type]
            seconds.append(perf_counter() - began)
            as_finding = case.cause in [f.cause for f in made.findings]
            as_note = case.cause in [n.id for n in made.notes]
            hits += as_finding or as_note
            kinds |= {"finding"} if as_finding else {"note"} if as_note else set()
            twin = check(case.healthy(seed, PLAIN))  # type: ignore[arg-type]
            alarms += bool(twin.findings)
            for finding in twin.findings:
                print(f"  twin of {name}, seed {seed}: {finding.cause}: {finding.text} ({finding.observed})")
            for finding in made.findings:
                if finding.cause not in (case.cause, *case.also_true):
                    print(f"  {name}, seed {seed}: also {finding.cause}: {finding.text} ({finding.observed})")
        if has:
            found, possible = found + hits, possible + asked.seeds
        wrong, twins = wrong + alarms, twins + asked.seeds
        said = " ".join(sorted(kinds)) or "-"
        print(
            f"{name:28} {'yes' if has else 'no':10} {hits:>3}/{asked.seeds:<3} {said:10} {alarms:>3}/{asked.seeds:<2} "
            f"{max(seconds):8.2f}",
            flush=True,
        )
    share = found / possible if possible else 1.0
    print(f"found where there is a preflight: {found} of {possible} ({share:.0%})")
    print(f"twins with a finding: {wrong} of {twins}")
    return int(share < LEAST or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
