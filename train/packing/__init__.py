"""Makes a bundle of trained networks: export, prefilter, fusion, thresholds, card."""
