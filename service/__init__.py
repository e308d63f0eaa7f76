"""How a model is offered: HTTP, batching, and what the rare classes are doing.

A request's way: `app` (routes), `upload` (bytes), `engine` (decode), `scheduler` (batches for the
device), `answers` (from logits to JSON). `errors` and `metrics` are used along all of it.
"""
