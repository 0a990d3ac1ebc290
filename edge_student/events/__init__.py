"""The event log of a run: records in memory, events.jsonl, spans of time, and the Perfetto trace."""
