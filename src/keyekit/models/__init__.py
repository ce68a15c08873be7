"""Models put together from parts: the decoder, the vision-language model, the contrastive model, generation, weights."""
