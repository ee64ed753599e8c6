"""What runs inside a worker process, and the frames by which the front talks to it."""
