"""The report of a comparison: verdicts, terminal table and HTML page."""
