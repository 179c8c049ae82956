"""Distillation methods, a file or a folder each.

Each registers itself (trainer/settings/method_registry.py) and is named nowhere else. What the methods share
stands in trainer/students.
"""
