"""Rollouts: engines that answer prompts for training, token ids in and token ids out."""
