"""Judges a bundle with the serving scorer, next to baselines, under evasion and attack."""
