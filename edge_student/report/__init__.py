"""The report of a comparison: verdicts, terminal table, HTML page."""
