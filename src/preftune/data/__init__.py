"""From datasets to the pairs that are trained on: read, adapt, check, mix, count tokens."""
