"""A simulated shop: shoppers with hidden tastes, items that come and go, and clicks on lists."""
