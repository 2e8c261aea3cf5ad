"""YAML and JSON documents to domain values, and back."""
