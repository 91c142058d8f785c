"""Evidence: signed statements about images and plans, kept in the store and verified."""
