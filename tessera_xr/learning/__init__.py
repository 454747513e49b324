"""Labels to maps: label sets, heads, honest validation and uncertainty, scikit-learn-compatible throughout."""
