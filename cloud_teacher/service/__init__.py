"""The gRPC service: authentication, admission, streams and rate limit. Never loads torch."""
