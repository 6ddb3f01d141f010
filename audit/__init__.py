"""Where a network looks over a whole data set, and whether it has learned a shortcut."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.audit.experiment import audit, judge_rows
    from cnnviz.audit.options import AuditSpec
    from cnnviz.audit.results import AuditResult, load
    from cnnviz.audit.rows import Row, Rows, columns
    from cnnviz.audit.study import Auditor
else:
    __getattr__ = lazily(
        __name__,
        {
            "experiment": ("audit", "judge_rows"),
            "options": ("AuditSpec",),
            "results": ("AuditResult", "load"),
            "rows": ("Row", "Rows", "columns"),
            "study": ("Auditor",),
        },
    )

__all__ = [
    "AuditResult",
    "AuditSpec",
    "Auditor",
    "Row",
    "Rows",
    "audit",
    "columns",
    "judge_rows",
    "load",
]
