"""From what runs now to what should: moves, and the order of steps."""
