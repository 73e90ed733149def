"""Our runs beside the paper's numbers: which runs share a cell, and tables of them."""
