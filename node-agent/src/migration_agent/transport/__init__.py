"""The direct stream between agents."""
