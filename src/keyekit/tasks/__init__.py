"""Tasks: thin LightningModules that join a network, an objective and logging."""
