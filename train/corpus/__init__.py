"""The corpus: authored messages, slots, evasion, public corpora, and splits without leaks."""
