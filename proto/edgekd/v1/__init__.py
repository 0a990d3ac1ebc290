"""Version 1 of the wire protocol: the schema and its generated stubs."""
