"""Pictures with label maps, as commands take and show them."""
