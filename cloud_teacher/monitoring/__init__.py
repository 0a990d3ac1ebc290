"""Prometheus counters, the HTTP server for them, and liveness. Never torch."""
