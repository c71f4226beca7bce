"""What one node can do: the only code that touches a site's data. It imports nothing of ours outside itself."""
