"""Memory that stays in the frozen processes of a source, and is fetched from there (docs/protocol.md, section 10)."""
