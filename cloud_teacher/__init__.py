"""The cloud side: trains a teacher, computes its logits once, and streams them to any number of edges."""
