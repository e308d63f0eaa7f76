"""The HTTP interface: routes, bodies, schemas, keys, connections."""
