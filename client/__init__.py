"""What one node can do: the only code that touches a site's data.

It imports nothing of ours from outside this folder: auditing it is auditing what a node runs.
"""
