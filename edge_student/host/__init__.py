"""The host: counters, disturbance, fingerprint, provenance and environment. Never loads torch."""
