"""Report a comparison: verdicts, terminal table, HTML page."""
