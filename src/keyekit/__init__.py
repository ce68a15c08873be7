"""keyekit: interchangeable parts and recipes for training Keye-VL, from a laptop to many GPUs.

Importing the package costs nothing: sub-packages load on first use.
"""

__version__ = "0.1.0.dev0"
