"""The report: a static folder that shows outputs as grids over axes, with scores, charts and every parameter."""

from batchgen.report.page.writer import ReportSummary, write_report

__all__ = ["ReportSummary", "write_report"]
