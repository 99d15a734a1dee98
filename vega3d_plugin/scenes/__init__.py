"""A place to frames: images, videos, rendered rooms, posed RGB-D, view selection."""
