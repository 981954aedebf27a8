"""How long `import whyspike` and `whyspike list` take: `./dev bench startup`.

Wall times of fresh processes. The import is measured in pairs with bare Python, one after the other, and the median
of the differences is reported: a slow moment of the machine hits both of a pair.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

IMPORT_S = 0.15  # over bare Python
LIST_S = 0.6


def wall(*arguments: str) -> float:
    """Seconds that `python ARGUMENTS` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    wall("-c", "import whyspike")  # the byte code is written and the files are in memory
    wall("-m", "whyspike", "list")
    over = [wall("-c", "import whyspike") - wall("-c", "pass") for _ in range(pairs)]
    listing = [wall("-m", "whyspike", "list") for _ in range(pairs)]
    failed = 0
    for words, seconds, limit in (
        ("import whyspike, over bare Python", statistics.median(over), IMPORT_S),
        ("whyspike list", statistics.median(listing), LIST_S),
    ):
        print(f"{words:<36} {seconds * 1e3:7.1f} ms   at most {limit * 1e3:.0f} ms   {pairs} runs, median")
        failed |= seconds > limit
    return failed


if __name__ == "__main__":
    sys.exit(main())
