"""The federation over Flower's Grid, its costs and metrics, and the engines."""
