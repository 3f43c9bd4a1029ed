"""What only the notebooks need: lessons, exercises, this machine."""
