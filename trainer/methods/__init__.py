"""Distillation methods, a file or a folder each."""
