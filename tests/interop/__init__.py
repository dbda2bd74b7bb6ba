"""Our nodes and real BEAM nodes together."""
