"""Drawing and measuring pictures from the command line."""
