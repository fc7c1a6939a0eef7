"""Pictures with label maps drawn by code."""
