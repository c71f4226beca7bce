"""The coordinator's Flower app: one run carries out one request."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.runner import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out what the run config asks for."""
    serve(grid, dict(context.run_config))
