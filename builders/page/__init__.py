"""The page that people look at: read from a store, put in order, drawn, written as one folder."""
