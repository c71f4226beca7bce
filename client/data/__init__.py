"""A node's data: examples, splits, the named sets, a site's own files."""
