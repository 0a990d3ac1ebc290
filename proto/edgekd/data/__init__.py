"""Data sets by name, and the conversion of their samples to the input of a model. May load torch."""
