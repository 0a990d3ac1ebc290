"""The wire format: limits, encodings, chunks, inputs, sample order, identities. Never torch."""
