"""The modules of the network: everything that has parameters."""
