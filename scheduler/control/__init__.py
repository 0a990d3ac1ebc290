"""The controller, a state machine without I/O, and the rates that it learns. Pure."""
