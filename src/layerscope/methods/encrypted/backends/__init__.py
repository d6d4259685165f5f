"""Who evaluates an integer network: gates in the clear, Concrete, TenSEAL, OpenFHE."""
