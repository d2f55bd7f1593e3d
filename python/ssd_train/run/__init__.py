"""One run: its seeds, its folder, its results."""
