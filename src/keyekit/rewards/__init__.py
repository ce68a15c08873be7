"""Rewards: what an answer is worth, by rules, by running it, or by the judgement of another model."""
