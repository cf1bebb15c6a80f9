"""A run from source to dataset: check, subtract what is done, plan, drive the workers, close the books."""

from batchgen.driver.making import run
from batchgen.driver.outlook import plan
from batchgen.driver.reopening import retry
from batchgen.driver.resolved import CheckedJob, check, resolved_rows
from batchgen.driver.watch import Reporter

__all__ = ["CheckedJob", "Reporter", "check", "plan", "resolved_rows", "retry", "run"]
