"""Version 1 of the wire: the schema and its generated stubs."""
