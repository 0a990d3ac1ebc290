"""Measurement methods: a local teacher, interleaved repeats and confidence intervals."""
