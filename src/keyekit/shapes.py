"""The letters that stand for tensor sizes in every docstring of keyekit.

A shape is written as letters in brackets, outermost axis first: ``hidden [T, D]``.

| letter | size | letter | size |
| --- | --- | --- | --- |
| B | batch (samples) | E | experts |
| T | packed tokens of all samples of a batch | A | active experts per token |
| S | tokens of one sequence | P | packed vision patches |
| D | model width | C | image channels |
| H | query heads | V | vocabulary |
| G | key/value groups (heads of K and V) | I | indexer heads |
| K | width of one head | N | selected keys per query |

Where a size appears that has no letter its name is spelled out: ``[T, indexer_dim]``.
"""
