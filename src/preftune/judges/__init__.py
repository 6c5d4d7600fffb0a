"""Judges: who compares two answers, or grades one. `interface.py` says what a judge does, `find.py` finds the one that
a recipe names, `run.py` lets it judge what two models answered."""
