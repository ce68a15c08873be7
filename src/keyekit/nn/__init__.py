"""Building blocks: pure functions of packed tensors, one family of interchangeable parts a folder."""
