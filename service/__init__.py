"""The service: it serves a bundle over HTTP and monitors what happens to the rare classes.

The way of a request: `http.app` (routes), `http.uploads` (its images), `inference.pipeline` (decode
and queue), `inference.scheduler` (batches for the device), `http.schemas` (logits to JSON).
`problems` and `monitoring.counters` are used on all of it.
"""
