"""What is estimated from real images before training."""
