"""Reports: one self-contained HTML page, one contact sheet, one table for the terminal.

Nothing here knows a stage or computes a statistic: the numbers come in as the frozen dataclasses of `t2i.report.model`.
"""

from t2i.report.html import write_report
from t2i.report.model import Report
from t2i.report.sheet import write_contact_sheet
from t2i.report.tables import comparison_table, print_comparison

__all__ = ["Report", "comparison_table", "print_comparison", "write_contact_sheet", "write_report"]
