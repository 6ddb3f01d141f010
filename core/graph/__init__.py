"""A traced network: operations that know where they look."""
