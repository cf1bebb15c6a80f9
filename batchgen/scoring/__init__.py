"""Scores of images that are made: metrics as data, one file a family, side tables beside the dataset."""
