"""Checkpoint in, verified int4 ONNX folder out."""
