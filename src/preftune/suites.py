"""Stub until the suites land."""
