"""The cloud side: a teacher that is trained once and streams its logits to any number of edges."""
