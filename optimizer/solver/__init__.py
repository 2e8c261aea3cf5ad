"""All that knows OR-Tools: how many replicas of which config, and where they go."""
