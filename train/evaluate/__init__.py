"""Judges a bundle: through the scorer that serves, beside baselines, under evasion and attack."""
