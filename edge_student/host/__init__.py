"""The machine: counters, disturbance, fingerprint, provenance, environment. Never torch."""
