"""Processes of this node, and what they send each other and those of other nodes."""
