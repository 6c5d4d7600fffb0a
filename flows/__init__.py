"""Prefect flows: wiring only, one file per flow, each flow named after its file."""
