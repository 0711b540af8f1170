"""What a GPU does with the product's hot paths; torch, numpy and Pillow are all that has to be there."""
