"""What Python code evaluated for the BEAM imports."""
