"""The numbers that `zoreward.noise` defines, computed quickly."""
