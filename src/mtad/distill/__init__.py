"""Trains a draft for a target: sample, train, evaluate, write."""
