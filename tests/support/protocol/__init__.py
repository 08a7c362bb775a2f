"""A model of the whole system around the real decisions, to look at every state: docs/verification.md."""
