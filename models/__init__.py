"""What a model is: in torch (`lift`), on disk and at run time (`bundle`), and the embedded one."""
