"""One self-contained HTML page from a study's results. Never imports torch."""

from mednorm.report.page import write_report as write_report
