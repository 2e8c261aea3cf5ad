"""Frozen values and their laws; reads, searches and prints nothing."""
