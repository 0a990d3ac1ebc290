"""Version 1 of the protocol: the schema and its generated stubs."""
