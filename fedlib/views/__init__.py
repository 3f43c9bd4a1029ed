"""Pictures, for the notebook and for the page."""
