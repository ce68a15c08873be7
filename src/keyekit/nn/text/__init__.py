"""Text encoders: packed captions in, one vector per caption out."""
