"""Reports of an evaluation and of two compared: JSON, Markdown, and one HTML page each.

``write`` puts the files together; ``tables`` holds the numbers as text,
``gallery`` the images. Nothing here scores or runs a model.
"""

from pixellm.evaluation.report.compare import (
    Comparison,
    check_comparison,
    compare_runs,
    write_comparison,
)
from pixellm.evaluation.report.write import check_report, write_evaluation, write_report

__all__ = [
    "Comparison",
    "check_comparison",
    "check_report",
    "compare_runs",
    "write_comparison",
    "write_evaluation",
    "write_report",
]
