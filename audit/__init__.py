"""Where a network looks over a whole data set, and whether it has learned a shortcut."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.audit.choices import AuditSpec
    from cnnviz.audit.experiment import AuditResult, audit
    from cnnviz.audit.rows import Row, Rows, columns
else:
    __getattr__ = lazily(
        __name__,
        {
            "choices": ("AuditSpec",),
            "experiment": ("AuditResult", "audit"),
            "rows": ("Row", "Rows", "columns"),
        },
    )

__all__ = ["AuditResult", "AuditSpec", "Row", "Rows", "audit", "columns"]
