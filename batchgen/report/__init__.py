"""What people are shown: progress, status, sheets of images."""
