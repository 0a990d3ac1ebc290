"""What crosses the wire: limits, encodings, chunks, inputs, sample order, identities. Never torch."""
