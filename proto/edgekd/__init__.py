"""What both ends agree on: schema, codec, sample order, data sets and models by name."""
