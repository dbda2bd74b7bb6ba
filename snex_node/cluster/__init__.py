"""The other nodes: the connections to them, and how those are made."""
