"""Pairs from a model's own answers: prompts, answers, scores, the best against the worst.

`steps.py` says how each step is made; `../pairs_schema.py` is the recipe's section.
"""
