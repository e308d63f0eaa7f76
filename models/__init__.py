"""The model: in torch (`lift`), on disk and at run time (`bundle`), and the built-in backbone."""
