"""Adam's mathematics and the number formats, each written once. All kernels are made of these files."""
