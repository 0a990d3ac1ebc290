"""The source of logits: model, store, public inputs."""
