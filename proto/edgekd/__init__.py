"""Code that cloud and edge share: the wire format, data sets and models by name, command lines, and files."""
