"""The objectives that zoreward ships, one to a file, registered like any plugin."""
