"""Weight files: bundled, trained, and imported from other programs."""
