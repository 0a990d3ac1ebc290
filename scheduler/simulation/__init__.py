"""The simulator, which runs the same controller in modelled time, and the studies behind the figures."""
