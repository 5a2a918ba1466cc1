"""The networks, each spoken to in the paper's letters."""
