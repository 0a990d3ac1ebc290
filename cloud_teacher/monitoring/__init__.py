"""Monitoring: Prometheus metrics, their HTTP server, and liveness. Never loads torch."""
