"""The simulator, which runs the controller in modelled time, and the studies for the figures. Pure: no clock, thread or I/O."""
