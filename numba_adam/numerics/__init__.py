"""Adam's mathematics and the number formats, each written once. Every kernel is made of these and nothing else."""
