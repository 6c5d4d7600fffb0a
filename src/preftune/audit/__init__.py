"""The audit of the data: one page, one set of tables."""
