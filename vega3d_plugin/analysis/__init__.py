"""Does a prior know space: correspondence, sweep, read-outs, pictures, report."""
