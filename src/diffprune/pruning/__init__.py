"""Surgery: a model and a plan in, a smaller model out."""
