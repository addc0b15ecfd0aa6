"""The review queue: messages that wait for an analyst, grouped into cases, and subscribers' reports."""
