"""The makings of a verdict: labels, text pipeline, tokenizer, network, bundle format, and the default bundle."""
