"""The node agent: freezes, dumps, sends, receives and restores containers."""
