"""The source of logits: model, store and public inputs. Only teacher.py loads torch."""
