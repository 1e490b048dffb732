"""Where tasks are learnt: one module for each kind of cluster state."""
