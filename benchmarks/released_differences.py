"""How far this installation is from what the released code computes, as a Markdown table.

    PIXELLM_PARITY_DIR=DIR python benchmarks/released_differences.py

Runs the tests that compare the two on every model in DIR, and prints the largest difference that
they measured of each quantity. Ends with exit code 1 where a test fails, 2 where DIR is missing.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tests" / "checkpoint"
COMPARISONS = ("test_released_parity.py", "test_forced_parity.py", "test_released_training.py")


class Differences:
    """Collects what tests note with ``note_difference`` while pytest runs them."""

    def __init__(self) -> None:
        self.largest: dict[tuple[str, str], tuple[float, float]] = {}
        self.outcomes: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the largest difference of each quantity, and how the test ended."""
        if report.when != "call":
            return
        self.outcomes[report.outcome] = self.outcomes.get(report.outcome, 0) + 1
        for name, noted in report.user_properties:
            if name == "difference":
                answers, quantity, found, allowed = noted
                before = self.largest.get((answers, quantity), (0.0, allowed))[0]
                self.largest[answers, quantity] = (max(before, found), allowed)

    def table(self) -> str:
        """The table, one row a quantity."""
        lines = [
            "| answers | quantity | largest difference | allowed |",
            "| --- | --- | --: | --: |",
        ]
        for (answers, quantity), (found, allowed) in self.largest.items():
            lines.append(f"| {answers} | {quantity} | {found:.1e} | {allowed:.0e} |")
        return "\n".join(lines)


def main() -> int:
    """Run the comparisons and print their table."""
    if not Path(os.environ.get("PIXELLM_PARITY_DIR", "")).is_dir() or not os.environ.get(
        "PIXELLM_PARITY_DIR"
    ):
        print("Set PIXELLM_PARITY_DIR to the folder of the released numbers.", file=sys.stderr)
        return 2
    differences = Differences()
    files = [str(TESTS / name) for name in COMPARISONS]
    status = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *files], [differences])
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pillow"))
    tests = ", ".join(f"{count} {outcome}" for outcome, count in differences.outcomes.items())
    print(f"\n{packages}; comparisons: {tests}.\n\n{differences.table()}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
