"""Scores of edits and of images, by networks that need not be those that made them."""
