"""Networks that are pre-trained, and what is read off them."""
