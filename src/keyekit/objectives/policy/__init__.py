"""Policy objectives: make answers of large reward likelier; advantages, divergences and rules on groups of answers."""
