"""The event log of a run: records in memory, events.jsonl, time spans, and the Perfetto trace. Never loads torch."""
