"""The review queue: which photos a person should label next, kept until somebody has."""
