"""The training loop, the experiment around it, and the run store."""
