"""Puts a bundle to work: scorer, command line, HTTP service, gateway decoding, relabelling, Spark."""
