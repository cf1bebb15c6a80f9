"""Sweeps: axes and templates that stand for the rows of a manifest. See `spec` for how a file says them."""

from batchgen.manifest.sweep.axes import label
from batchgen.manifest.sweep.records import parse_sweep, sweep_records
from batchgen.manifest.sweep.rows import axis_lines, count_cells, sweep_rows
from batchgen.manifest.sweep.spec import read_sweep
from batchgen.manifest.sweep.sweep import Sweep

__all__ = ["Sweep", "axis_lines", "count_cells", "label", "parse_sweep", "read_sweep", "sweep_records", "sweep_rows"]
