"""What a site's operator runs: the node's two processes, and which bundles may start in one.

    efface site run
      node       client.operator.node      the SuperNode: holds the node key, dials the coordinator,
                                           opens no port: its Runtime API is one Unix socket
      executor   client.operator.executor  holds the data, not the key; no network but that socket
        gate     client.operator.gate      a process a message: checks the bundle, then becomes it;
                                           a copy of the executor (client.operator.warm), or new

Where this hooks into flwr 1.39.0, and why there:

- `flwr.supernode.start_client_internal` runs the SuperNode. It fetches a run's bundle (a FAB, a
  zip) once, reads the bundle's pyproject.toml as text, and hands the bytes to whoever pulls the
  task. It runs nothing of it. `--isolation process` leaves pulling to others: here, to us alone.
- Flower's own executor, `flower-superexec`, would start `flwr-clientapp` for a task, or
  `flwr-agentapp` where the coordinator says that the run is an agent's: a check in the former alone
  is walked round. `executor` takes every kind of task, and has one answer to them: the gate.
- `flwr.supernode.runtime.run_clientapp` installs the bytes (`install_from_fab` copies nothing where
  a folder with the same first 8 digits of the hash exists) and imports from a folder whose name is
  put together of what the coordinator said (`fab_id`, `fab_version`). `gate` stands in its place:
  it computes the SHA-256 of the bytes that it was given, asks the operator's list, unpacks those
  same bytes into a fresh folder and imports from there. Nothing is fetched a second time, nothing
  that an earlier run left is loaded, and nothing of a bundle that is not on the list is unpacked.
"""
