"""What `python -m jaxdl` does."""
