"""Configurations as YAML, one folder a family; installed so that a name is enough."""
