"""Feed-forward parts: dense, mixture of experts, and the routers that choose experts."""
