"""Linux network namespaces as directories."""
