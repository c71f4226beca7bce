"""A request's report, and what a person sees in a terminal."""
