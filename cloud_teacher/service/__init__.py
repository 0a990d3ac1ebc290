"""The gRPC service: authentication, admission, streams, rate limit. Never torch."""
