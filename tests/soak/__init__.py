"""Everything that can befall a Python, at random and for minutes: what must hold is counted."""
