"""Where the clients run: in this process, on Ray, or behind a SuperLink. The apps are the same."""
