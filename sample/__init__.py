"""Drawing pictures from the command line."""
