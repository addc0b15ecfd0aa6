"""Packs networks into a bundle: ONNX, int8, prefilter, fusion, thresholds, card."""
