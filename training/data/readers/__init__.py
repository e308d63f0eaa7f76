"""One reader for each layout of photos, and the registry that recognises them."""
