"""What a newcomer sees first: new pictures from several ones, and what the fast kernels gain."""
