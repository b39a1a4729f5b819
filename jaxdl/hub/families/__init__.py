"""One file for each family of published models: its configuration and its names."""
