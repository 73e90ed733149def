"""The report: one HTML file that holds everything, from the same records as the tables and figures.

`build_report` is the public call. What the page says is gathered in `exhibit_sections`, `charts` and
`background`; how it is put together, in `page` and the templates beside it. The plotting library uPlot
(MIT) lies in `uplot/` as its authors publish it. Nothing here imports torch.
"""

from resrepro.report.page import build_report
from resrepro.report.verdicts import Judged

__all__ = ["Judged", "build_report"]
