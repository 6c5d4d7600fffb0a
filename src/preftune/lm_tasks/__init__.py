"""lm-eval tasks that come with preftune and need no network: preference_pairs, facts, instructions."""
