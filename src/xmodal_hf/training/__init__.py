"""Training: arguments, optimisation, the one loop of all phases, gradient caching."""
