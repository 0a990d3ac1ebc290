"""The controller, a state machine, and the rates that it estimates. Uses no clock, threads or I/O."""
