"""Scores answers on tasks."""
