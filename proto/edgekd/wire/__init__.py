"""The content of messages: limits, encodings, chunks, inputs, sample order, identities. Never loads torch."""
