"""What `planyard init` writes: a matrix, an image, a workflow, for a model that lies on disk."""
