"""A grid of runs through papermill, and its pages."""
