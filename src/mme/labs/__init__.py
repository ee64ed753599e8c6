"""What the labs share: a platform of their own to run on, traffic to send, caches to compare with."""
