"""Everything that was measured of files, as JSON and as one page to look at. Needs the extra ``[report]``."""

from gossamer.report.collect import report_of
from gossamer.report.measuring import Effort
from gossamer.report.report import Report

__all__ = ["Effort", "Report", "report_of"]
