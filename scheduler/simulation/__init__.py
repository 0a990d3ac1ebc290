"""The same controller in modelled time, and the studies behind the figures. Pure."""
