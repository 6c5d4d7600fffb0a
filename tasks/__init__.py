"""Thin Prefect tasks around preftune's steps: retries, caching and the GPU slot stand here, the logic does not."""
