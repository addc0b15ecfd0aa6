"""Judges a bundle: through the scorer that serves, at fixed false-positive rates, beside peers, under evasion."""
