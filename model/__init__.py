"""What a verdict is: labels, text pipeline, tokenizer, network, bundle format, and the default bundle."""
