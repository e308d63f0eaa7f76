"""taillift: fine-tune CLIP on long-tailed photos, serve it, and watch its rare classes."""
