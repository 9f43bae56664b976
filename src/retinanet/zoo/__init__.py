"""Weight files and where they come from."""
