"""Networks that plans can name."""
